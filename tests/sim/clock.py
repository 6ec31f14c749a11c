"""Virtual time: a heap of things to do. Equal times run in the order they were planned, so a seed is a trace."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds that pass only when nothing is left to do at the present one."""

    __slots__ = ("_heap", "_planned", "now_s", "stopped")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stopped = False
        """Set by an action to end `run_until` at once."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        """Plan an action; there is no cancelling, actions check whether they still apply."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._planned, action, args))

    def run_until(self, end_s: float) -> None:
        """Run planned actions up to `end_s`, or until one of them sets `stopped`."""
        heap, pop = self._heap, heapq.heappop
        self.stopped = False
        while heap and heap[0][0] <= end_s:
            self.now_s, _, action, args = pop(heap)
            action(*args)
            if self.stopped:
                return
        self.now_s = max(self.now_s, end_s)
