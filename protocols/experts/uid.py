"""Names of experts. `ffn0.3.17` is the expert at place (3, 17) of the grid of layer `ffn0`.

A grid may be mostly empty. The directory has one key for each prefix of a place, the last coordinate left out:
`ffn0.3` lists what is alive below it, so that a search walks down the grid one coordinate at a time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

Place: TypeAlias = tuple[int, ...]

DIMENSIONS_MAX: Final = 4
SIZE_MAX: Final = 1 << 16
UID_CHARACTERS_MAX: Final = 64
_LAYER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_UID: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,31})((?:\.(?:0|[1-9][0-9]{0,4})){1,4})")
"""No leading zeros: an expert has one name only."""


@dataclass(frozen=True, slots=True, order=True)
class ExpertUID:
    """An expert's name."""

    layer: str
    place: Place

    def __post_init__(self) -> None:
        if not _LAYER.fullmatch(self.layer):
            raise ValueError("a layer's name is a letter and up to 31 letters, digits, _ or -")
        if not 1 <= len(self.place) <= DIMENSIONS_MAX:
            raise ValueError(f"an expert has 1 to {DIMENSIONS_MAX} coordinates")
        if not all(0 <= coordinate < SIZE_MAX for coordinate in self.place):
            raise ValueError(f"a coordinate is 0 to {SIZE_MAX - 1}")

    @classmethod
    def from_text(cls, text: str) -> ExpertUID:
        """Parse `layer.u1.u2`. Raises ValueError."""
        match = _UID.fullmatch(text)
        if match is None:
            raise ValueError("an expert is named like ffn.3.17")
        return cls(match[1], tuple(int(part) for part in match[2][1:].split(".")))

    def __str__(self) -> str:
        return ".".join([self.layer, *map(str, self.place)])

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Return the prefixes that list it, the shortest first. A grid of one dimension has only the layer itself."""
        shortest = 1 if len(self.place) > 1 else 0
        return tuple(
            Prefix(self.layer, self.place[:length]) for length in range(shortest, len(self.place))
        )


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """A layer and the first coordinates of a place."""

    layer: str
    place: Place

    def __str__(self) -> str:
        return ".".join([self.layer, *map(str, self.place)])

    @property
    def topic(self) -> str:
        """Its key in the directory, within the run (`protocols.records.run_key`)."""
        return f"experts/{self}"


@dataclass(frozen=True, slots=True)
class Grid:
    """The places of one layer's experts."""

    layer: str
    sizes: Place

    def __post_init__(self) -> None:
        ExpertUID(self.layer, tuple(size - 1 for size in self.sizes))  # raises ValueError

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def __contains__(self, uid: ExpertUID) -> bool:
        return (
            uid.layer == self.layer
            and len(uid.place) == len(self.sizes)
            and all(u < size for u, size in zip(uid.place, self.sizes, strict=True))
        )

    def uids(self) -> Iterator[ExpertUID]:
        """Yield every place, occupied or not, in order."""
        for place in itertools.product(*(range(size) for size in self.sizes)):
            yield ExpertUID(self.layer, place)

    def prefixes(self) -> Iterator[Prefix]:
        """Yield every prefix that directly lists experts."""
        for place in itertools.product(*(range(size) for size in self.sizes[:-1])):
            yield Prefix(self.layer, place)
