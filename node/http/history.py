"""The curves of the page: how training went since this node started, in bounded memory. No clock, no IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

POINTS_MAX: Final = 512
"""A phone has fewer pixels across; 20 KB as JSON."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was known at one moment; None where nothing was."""

    at_s: float
    """Seconds since the node started."""
    step: int | None
    loss: float | None
    held_out_loss: float | None
    samples_per_second: float | None
    peers: int


class History:
    """Keeps points at equal distances in time; when it is full, every second one goes and the distance doubles."""

    def __init__(self, every_s: float, points_max: int = POINTS_MAX) -> None:
        self._every_s = every_s
        self._points_max = points_max
        self._points: list[Point] = []

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(self._points)

    def add(self, point: Point) -> None:
        """Take a point; one that comes sooner than the distance replaces the last, so that the newest is always there."""
        kept = self._points
        if len(kept) > 1 and point.at_s - kept[-2].at_s < self._every_s * 0.999:
            kept[-1] = point
            return
        kept.append(point)
        if len(kept) > self._points_max:
            self._points = kept[::2]
            self._every_s *= 2

    def columns(self) -> dict[str, list[Any]]:
        """Return the points as one list for each quantity: half the size of a list of tables."""
        names = ("at_s", "step", "loss", "held_out_loss", "samples_per_second", "peers")
        return {name: [_short(getattr(point, name)) for point in self._points] for name in names}


def _short(value: float | None) -> float | None:
    """Round to what a curve can show."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
