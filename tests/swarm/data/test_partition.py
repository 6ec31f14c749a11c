"""Cuts cover every sample once, are never empty, and are the same on every peer."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.data.errors import DataError
from swarm.data.partition import Kind, held_out_split, partition

LABELS = [random.Random(index).randrange(10) for index in range(1000)]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.integers(1, 60),
    st.sampled_from(["iid", "dirichlet"]),
    st.floats(1e-3, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_every_sample_is_in_one_partition_and_none_is_empty(
    labels: list[int], partitions: int, kind: Kind, alpha: float
) -> None:
    if len(labels) < partitions:
        with pytest.raises(DataError):
            partition(labels, kind=kind, partitions=partitions, seed=1, alpha=alpha)
        return
    parts = partition(labels, kind=kind, partitions=partitions, seed=1, alpha=alpha)
    assert sorted(index for part in parts for index in part) == list(range(len(labels)))
    assert len(parts) == partitions
    assert min(map(len, parts)) >= 1
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_cut_depends_on_the_seed_alone() -> None:
    kinds: tuple[Kind, ...] = ("iid", "dirichlet")
    for kind in kinds:
        first, again, other = (
            partition(LABELS, kind=kind, partitions=7, seed=seed) for seed in (1, 1, 2)
        )
        assert first == again != other


def mixed(alpha: float, kind: Kind = "dirichlet") -> float:
    """How large the largest label's share is in a partition, on average."""
    parts = partition(LABELS, kind=kind, partitions=20, seed=3, alpha=alpha)
    return sum(max(Counter(LABELS[i] for i in part).values()) / len(part) for part in parts) / 20


def test_the_smaller_alpha_the_fewer_labels_a_partition_has() -> None:
    assert mixed(0.1) > 0.6
    assert 0.3 < mixed(0.5) < 0.6
    assert mixed(1000) < 0.25
    assert mixed(1.0, "iid") < 0.25


def test_the_held_out_part_is_fixed_and_apart() -> None:
    train, test = held_out_split(100, held_out=0.2, seed=1)
    assert sorted(train + test) == list(range(100))
    assert len(test) == 20
    assert held_out_split(100, held_out=0.2, seed=1) == (train, test)
    assert held_out_split(2, held_out=0.001, seed=1)[1] != []
    with pytest.raises(DataError):
        held_out_split(1, held_out=0.5, seed=1)
