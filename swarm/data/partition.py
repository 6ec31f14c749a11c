"""Cutting labelled samples between peers. Everything here is pure: each peer computes the same cut by itself.

Python's own generator, since its streams are the same on every machine and in every version; numpy does not promise it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypeAlias

from swarm.data.errors import DataError

Kind: TypeAlias = Literal["iid", "dirichlet"]


def held_out_split(count: int, *, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Split samples 0 to count - 1 into those to train on and those that are never trained on. Neither is empty.

    Raises DataError when there are fewer than two.
    """
    if count < 2:
        raise DataError(f"training and testing take two samples at least; there are {count}")
    order = list(range(count))
    random.Random(f"murmura held out:{seed}").shuffle(order)
    cut = min(max(1, round(count * held_out)), count - 1)
    return sorted(order[cut:]), sorted(order[:cut])


def partition(
    labels: Sequence[int], *, kind: Kind, partitions: int, seed: int, alpha: float = 0.5
) -> list[list[int]]:
    """Cut samples in parts whose sizes differ by one at most; return the indices in each, every index once.

    `dirichlet`: each partition draws a mixture of labels from Dirichlet(alpha), and its samples from that mixture while
    there are any (Hsu, Qi, Brown 2019, arXiv:1909.06335). Equal sizes, so that no part is empty.

    Args:
      labels: of each sample.
    Raises:
      DataError: there are fewer samples than partitions.
    """
    if len(labels) < partitions:
        raise DataError(
            f"{len(labels)} samples cannot be cut in {partitions} partitions that are not empty; "
            "choose a smaller data.partitions"
        )
    rng = random.Random(f"murmura partitions:{seed}:{partitions}")
    order = list(range(len(labels)))
    rng.shuffle(order)
    sizes = [len(labels) // partitions] * partitions
    for extra in range(len(labels) % partitions):
        sizes[extra] += 1
    if kind == "dirichlet":
        return _dirichlet(labels, order, sizes, alpha, rng)
    parts, start = [], 0
    for size in sizes:
        parts.append(sorted(order[start : start + size]))
        start += size
    return parts


def _dirichlet(
    labels: Sequence[int],
    order: Sequence[int],
    sizes: Sequence[int],
    alpha: float,
    rng: random.Random,
) -> list[list[int]]:
    pools: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index in order:
        pools[labels[index]].append(index)
    classes = list(pools)
    # The prior is how often each label occurs, as in the paper. A gamma draw can be 0 when alpha is tiny.
    weights = [alpha * len(classes) * len(pools[label]) / len(labels) for label in classes]
    parts = []
    for size in sizes:
        mixture = [rng.gammavariate(weight, 1.0) + 1e-300 for weight in weights]
        part = []
        for _ in range(size):
            left = [
                share if pools[label] else 0.0
                for share, label in zip(mixture, classes, strict=True)
            ]
            label = rng.choices(classes, left)[0] if sum(left) > 0 else _any_left(pools)
            part.append(pools[label].pop())
        parts.append(sorted(part))
    return parts


def _any_left(pools: dict[int, list[int]]) -> int:
    return max(pools, key=lambda label: len(pools[label]))
