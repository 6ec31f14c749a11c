"""Virtual time: things to do, each at its time. Equal times run in the order they were planned, so a seed is a trace.

What is far away lies unsorted in a drawer for its moment, and is sorted all at once when that begins: most of what is planned
is a deadline that is cancelled before, and a heap of a hundred thousand entries is slow.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final, TypeAlias

_DRAWER_S: Final = 0.02
_Entry: TypeAlias = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class Clock:
    """Seconds that pass only when nothing is left to do at the present one."""

    __slots__ = (
        "_cancelled",
        "_drawers",
        "_due",
        "_last",
        "_order",
        "_planned",
        "_soon",
        "now_s",
        "stopped",
    )

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stopped = False
        """Set by an action to end `run_until` at once."""
        self._due: list[_Entry] = []
        """What was in drawer `_last` when it began, the next one at the end."""
        self._soon: list[_Entry] = []
        """A heap of what was planned for it since then."""
        self._last = 0
        self._drawers: dict[int, list[_Entry]] = {}
        self._order: list[int] = []
        """A heap of the numbers of the drawers that hold something."""
        self._cancelled: set[int] = set()
        self._planned = 0

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> int:
        """Plan an action; actions check whether they still apply. Returns its number, for `cancel`."""
        self._planned += 1
        at_s = self.now_s + delay_s
        drawer = int(at_s / _DRAWER_S)
        entry = at_s, self._planned, action, args
        if drawer <= self._last:
            heapq.heappush(self._soon, entry)
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
        due, soon, pop, cancelled = self._due, self._soon, heapq.heappop, self._cancelled
        self.stopped = False
        while True:
            if soon and (not due or soon[0] < due[-1]):
                entry = pop(soon)
            elif due:
                entry = due.pop()
            elif self._order and self._order[0] * _DRAWER_S <= end_s:
                self._open(heapq.heappop(self._order))
                continue
            else:
                break
            at_s, number, action, args = entry
            if at_s > end_s:
                heapq.heappush(soon, entry)
                break
            self.now_s = at_s
            if number in cancelled:
                cancelled.remove(number)
                continue
            action(*args)
            if self.stopped:
                return
        self.now_s = max(self.now_s, end_s)

    def _open(self, drawer: int) -> None:
        """Sort the next drawer: all before it is done."""
        cancelled = self._cancelled
        entries = self._drawers.pop(drawer)
        if cancelled:
            self._due += [entry for entry in entries if entry[1] not in cancelled]
            if len(self._due) < len(entries):
                cancelled.difference_update([entry[1] for entry in entries])
        else:
            self._due += entries
        self._due.sort(reverse=True)
        self._last = drawer
