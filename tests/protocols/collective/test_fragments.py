"""How a model is cut, and when each fragment is averaged."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.collective.fragments import Schedule, cut

TRANSFORMER = [
    ("embedding.weight", 50),
    *((f"layers.{i}.attention.weight", 40) for i in range(6)),
    *((f"layers.{i}.mlp.weight", 60) for i in range(6)),
    ("head.weight", 50),
]
IN_ORDER = sorted(TRANSFORMER, key=lambda item: (item[0] != "embedding.weight", item[0] == "head.weight", item[0]))  # fmt: skip


def test_strided_takes_every_nth_layer_and_deals_out_the_rest() -> None:
    fragments = cut(IN_ORDER, count=3, order="strided")
    layers = [sorted({name.split(".")[1] for name in f if "layers" in name}) for f in fragments]
    assert layers == [["0", "3"], ["1", "4"], ["2", "5"]]
    assert "embedding.weight" in fragments[0]
    assert "head.weight" in fragments[1]


def test_sequential_takes_neighbours() -> None:
    fragments = cut(IN_ORDER, count=2, order="sequential")
    layers = [sorted({name.split(".")[1] for name in f if "layers" in name}) for f in fragments]
    assert layers == [["0", "1", "2"], ["3", "4", "5"]]


@given(
    st.dictionaries(
        st.sampled_from([f"{a}.{i}.{b}" for a in "xy" for i in range(5) for b in "uv"] + ["h", "e.w"]),
        st.integers(1, 100),
        min_size=1,
    ),
    st.integers(1, 8),
    st.sampled_from(["strided", "sequential"]),
)  # fmt: skip
def test_every_tensor_is_in_one_fragment_and_layers_stay_whole(
    sizes: dict[str, int], count: int, order: str
) -> None:
    fragments = cut(list(sizes.items()), count=count, order=order)  # type: ignore[arg-type]
    assert Counter(name for fragment in fragments for name in fragment) == Counter(list(sizes))
    assert 1 <= len(fragments) <= count
    assert all(fragments)
    where = {name: place for place, fragment in enumerate(fragments) for name in fragment}
    for name in sizes:
        for other in sizes:
            if "." in name and name.rpartition(".")[0] == other.rpartition(".")[0]:
                assert where[name] == where[other]


@pytest.mark.parametrize("fragments", [1, 3, 4, 30])
def test_each_fragment_is_averaged_every_h_steps_and_one_at_a_time(fragments: int) -> None:
    schedule = Schedule(fragments=fragments, local_steps=30, steps=301)
    steps: dict[int, list[int]] = {}
    for step, fragment in schedule.all_due():
        steps.setdefault(fragment, []).append(step)
    for fragment, found in steps.items():
        assert found[-1] == 301
        regular = found[:-1]
        assert regular[0] == schedule.offset(fragment)
        assert {b - a for a, b in itertools.pairwise(regular)} == {30}
    assert all(len(schedule.due(step)) <= 1 for step in range(301))


@given(st.integers(1, 8), st.integers(8, 20), st.integers(1, 100), st.integers(0, 100))
def test_the_next_step_that_is_due_is_the_first_after_this_one(
    fragments: int, local_steps: int, steps: int, after: int
) -> None:
    schedule = Schedule(fragments=fragments, local_steps=local_steps, steps=steps)
    for fragment in range(fragments):
        found = [step for step in range(after + 1, steps + 1) if fragment in schedule.due(step)]
        assert schedule.next_due(fragment, after) == (found[0] if found else steps)
