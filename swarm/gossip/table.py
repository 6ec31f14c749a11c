"""Where the tensors of a model lie in its flat vector, and how that is cut in the parts that are pushed in turn. No torch.

Only parameters are in the vector: norm statistics are buffers, and are neither averaged nor corrected.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgpack

from protocols.gossip.pushes import ModelLayout


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place in a flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Table:
    """Consecutive tensors of a flat vector, from `start` to `end`."""

    slots: tuple[Slot, ...]
    bounds: tuple[tuple[int, int], ...] = field(init=False)
    """Start and end of each tensor, counted from the table's own start."""

    def __post_init__(self) -> None:
        for before, after in zip(self.slots, self.slots[1:], strict=False):
            if before.end != after.start:
                raise ValueError(f"{after.name} does not begin where {before.name} ends")
        if not self.slots or any(slot.size == 0 for slot in self.slots):
            raise ValueError("a model has at least one tensor, and none is empty")
        bounds = tuple((slot.start - self.start, slot.end - self.start) for slot in self.slots)
        object.__setattr__(self, "bounds", bounds)

    @property
    def start(self) -> int:
        return self.slots[0].start

    @property
    def end(self) -> int:
        return self.slots[-1].end

    @property
    def elements(self) -> int:
        return self.end - self.start

    @classmethod
    def of_shapes(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Table:
        """Lay tensors one after the other, in this order."""
        slots, start = [], 0
        for name, shape in shapes:
            slots.append(Slot(name, shape, start))
            start = slots[-1].end
        return cls(tuple(slots))

    def parts(self, count: int) -> tuple[Table, ...]:
        """Cut between tensors in at most `count` parts of about the same size; none is empty."""
        groups: list[list[Slot]] = [[] for _ in range(count)]
        for slot in self.slots:
            middle = (slot.start + slot.end) / 2 - self.start
            groups[min(count - 1, int(middle * count / self.elements))].append(slot)
        return tuple(Table(tuple(group)) for group in groups if group)

    def layout(self, *, dtype: str, parts: int) -> ModelLayout:
        """Say what the core must know of a model: peers whose digests differ cannot average."""
        cut = self.parts(parts)
        names = [[slot.name, list(slot.shape)] for slot in self.slots]
        told = ["murmura gossip layout", dtype, names, [[p.start, p.end] for p in cut]]
        return ModelLayout(
            digest=hashlib.sha256(bytes(msgpack.packb(told))).digest(),
            part_elements=tuple(part.elements for part in cut),
        )
