"""How a peer's own training goes lately, for people."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

_LATELY: Final = 50
"""Batches."""


class Pace:
    """Over the last batches of a peer that trains by itself. Knows no clock.

    Args:
      batch: samples in each.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._losses: deque[float] = deque(maxlen=_LATELY)
        self._times_s: deque[float] = deque(maxlen=_LATELY)

    def trained(self, now_s: float, loss: float | None) -> None:
        """A batch is trained; None: its loss says nothing."""
        if loss is not None:
            self._losses.append(loss)
        self._times_s.append(now_s)

    @property
    def loss(self) -> float | None:
        """The mean; None before the first batch."""
        return statistics.fmean(self._losses) if self._losses else None

    @property
    def samples_per_second(self) -> float | None:
        """None before the second batch."""
        times_s = self._times_s
        if len(times_s) < 2 or times_s[-1] == times_s[0]:
            return None
        return round(self._batch * (len(times_s) - 1) / (times_s[-1] - times_s[0]), 1)
