"""How a model is cut in fragments, and at which steps each is averaged. All peers compute the same from the run alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


def cut(
    tensors: Sequence[tuple[str, int]], *, count: int, order: Literal["strided", "sequential"]
) -> tuple[tuple[str, ...], ...]:
    """Deal a model's tensors out to at most `count` fragments; layers stay whole, and no fragment is empty.

    Args:
      tensors: name and size of each, in the order of the network.
    """
    layers: dict[str, list[tuple[str, int]]] = {}
    for name, size in tensors:
        layers.setdefault(_layer_of(name), []).append((name, size))
    sizes = {layer: sum(size for _, size in members) for layer, members in layers.items()}
    dealt = _sequential(sizes, count) if order == "sequential" else _strided(sizes, count)
    return tuple(
        tuple(name for layer in fragment for name, _ in layers[layer])
        for fragment in dealt
        if fragment
    )


def _layer_of(name: str) -> str:
    """Return `layers.3` of `layers.3.mlp.up.weight`, and `head` of `head.weight`."""
    steps = name.split(".")
    numbers = [place for place, step in enumerate(steps) if step.isdigit()]
    return ".".join(steps[: numbers[0] + 1] if numbers else steps[:-1] or steps)


def _sequential(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Cut between layers, so that fragments are of about the same size."""
    fragments: list[list[str]] = [[] for _ in range(count)]
    whole, start = sum(sizes.values()), 0
    for layer, size in sizes.items():
        middle = start + size / 2
        fragments[min(count - 1, int(middle * count / whole))].append(layer)
        start += size
    return fragments


def _strided(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Every n-th of the numbered layers; what has no number goes to the smallest fragments, the largest first."""
    fragments: list[list[str]] = [[] for _ in range(count)]
    numbered = [layer for layer in sizes if layer.rpartition(".")[2].isdigit()]
    for place, layer in enumerate(numbered):
        fragments[place % count].append(layer)
    for layer in sorted(set(sizes) - set(numbered), key=lambda layer: (-sizes[layer], layer)):
        smallest = min(range(count), key=lambda i: sum(sizes[known] for known in fragments[i]))
        fragments[smallest].append(layer)
    return fragments


@dataclass(frozen=True, slots=True)
class Schedule:
    """When fragments are averaged. Steps are counted as done: the first average is after step `offset(0)`.

    Args:
      steps: in the run; after the last one every fragment is averaged once more, so that the outcome has all work in it.
    """

    fragments: int
    local_steps: int
    steps: int

    def offset(self, fragment: int) -> int:
        """Return the first step after which this fragment is averaged: they are spread over the local steps."""
        return self.local_steps * (fragment + 1) // self.fragments

    def due(self, step: int) -> tuple[int, ...]:
        """Return the fragments that are averaged after this step."""
        if step == self.steps:
            return tuple(range(self.fragments))
        return tuple(p for p in range(self.fragments) if self._is_due(p, step))

    def next_due(self, fragment: int, after: int) -> int:
        """Return the first step after `after` at which a fragment is averaged; the last step of the run at the latest."""
        offset = self.offset(fragment)
        rounds = max(0, (after - offset) // self.local_steps + 1)
        return min(self.steps, offset + rounds * self.local_steps)

    def all_due(self) -> Iterator[tuple[int, int]]:
        """Yield (step, fragment) for the whole run, in order."""
        for step in range(1, self.steps + 1):
            for fragment in self.due(step):
                yield step, fragment

    def _is_due(self, fragment: int, step: int) -> bool:
        passed = step - self.offset(fragment)
        return passed >= 0 and passed % self.local_steps == 0
