"""Virtual time: things to do, each at its time. Equal times run in the order they were planned, so a seed is a trace.

What is far away lies unsorted in a drawer for its second or so, and is sorted when that begins: most of what is planned is a
deadline that is cancelled before, and a heap of a hundred thousand entries is slow.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any, Final

_DRAWER_S: Final = 0.25


class EndlessRunError(Exception):
    """More was done than any run needs: something plans itself again and again."""


class Clock:
    """Seconds that pass only when nothing is left to do at the present one."""

    __slots__ = (
        "_cancelled",
        "_drawers",
        "_heap",
        "_last",
        "_order",
        "_planned",
        "actions_left",
        "now_s",
        "stopped",
    )

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stopped = False
        """Set by an action to end `run_until` at once."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        """What is planned up to the end of drawer `_last`."""
        self._last = 0
        self._drawers: dict[int, list[tuple[float, int, Callable[..., None], tuple[Any, ...]]]] = {}
        self._order: list[int] = []
        """A heap of the numbers of the drawers that hold something."""
        self._cancelled: set[int] = set()
        self._planned = 0
        self.actions_left = math.inf
        """How many more actions may be run before the run is taken for endless."""

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> int:
        """Plan an action; actions check whether they still apply. Returns its number, for `cancel`."""
        self._planned += 1
        at_s = self.now_s + delay_s
        drawer = int(at_s / _DRAWER_S)
        entry = at_s, self._planned, action, args
        if drawer <= self._last:
            heapq.heappush(self._heap, entry)
        elif (entries := self._drawers.get(drawer)) is not None:
            entries.append(entry)
        else:
            self._drawers[drawer] = [entry]
            heapq.heappush(self._order, drawer)
        return self._planned

    def cancel(self, number: int) -> None:
        """Forget what is planned, and has not been done yet."""
        self._cancelled.add(number)

    def run_until(self, end_s: float) -> None:
        """Run planned actions up to `end_s`, or until one of them sets `stopped`."""
        heap, pop, cancelled = self._heap, heapq.heappop, self._cancelled
        self.stopped = False
        while True:
            while heap and heap[0][0] <= end_s:
                self.now_s, number, action, args = pop(heap)
                if number in cancelled:
                    cancelled.remove(number)
                    continue
                action(*args)
                if self.stopped:
                    return
                self.actions_left -= 1
                if self.actions_left < 0:
                    name = getattr(action, "__qualname__", repr(action))
                    raise EndlessRunError(
                        f"too many actions by {self.now_s:.3f} s, the last: {name}"
                    )
            if heap or not self._order or self._order[0] * _DRAWER_S > end_s:
                break
            self._open(heapq.heappop(self._order))
        self.now_s = max(self.now_s, end_s)

    def _open(self, drawer: int) -> None:
        """Sort the next drawer: the heap is empty."""
        cancelled = self._cancelled
        entries = self._drawers.pop(drawer)
        self._heap.extend(entry for entry in entries if entry[1] not in cancelled)
        cancelled.difference_update(entry[1] for entry in entries)
        heapq.heapify(self._heap)
        self._last = drawer
