"""Drives cores against the real clock and network: events in, effects out, in order, one at a time.

The simulator drives the same cores; whatever a driver decides by itself would be untested there, so this one decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

EventT = TypeVar("EventT")


class Driver(Generic[EventT]):
    """Feeds one or several cores of one owner. Used from the event loop only.

    Args:
      handle: gives one event to its core and performs the effects; may `feed` more, which come after.
      wake_at_s: when the first core wants its tick.
      tick: feeds ticks to the cores for which it is time.
    """

    def __init__(
        self,
        *,
        handle: Callable[[EventT], None],
        wake_at_s: Callable[[], float],
        tick: Callable[[float], None],
    ) -> None:
        self._handle = handle
        self._wake_at_s = wake_at_s
        self._tick = tick
        self._events: deque[EventT] = deque()
        self._open = False
        self._pumping = False
        self._sleeping_until_s = 0.0
        self._kick = trio.Event()

    def feed(self, event: EventT) -> None:
        """Let the cores take an event, and do what they say, before anything else happens."""
        self._events.append(event)
        self._pump()

    def open(self) -> None:
        """Take events from now on; those fed before come first."""
        self._open = True
        self._pump()

    async def run(self) -> None:
        """Open, and tick the cores when they ask for it, until cancelled."""
        self.open()
        try:
            while True:
                now_s = trio.current_time()
                self._tick(now_s)
                self._sleeping_until_s = self._wake_at_s()
                # Never a busy loop, whatever a core asks for.
                with trio.move_on_at(max(self._sleeping_until_s, now_s + 0.01)):
                    await self._kick.wait()
                self._kick = trio.Event()
        finally:
            self._open = False

    def _pump(self) -> None:
        if self._pumping or not self._open:
            return
        self._pumping = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._pumping = False
        if self._wake_at_s() < self._sleeping_until_s:
            self._kick.set()  # a core wants a tick before the one we sleep for
