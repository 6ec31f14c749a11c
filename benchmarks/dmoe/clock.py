"""Virtual time for trainers that are threads: one baton, handed to whoever wakes first. A seed gives one result."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

_Action: TypeAlias = Callable[[], None]


class _StoppedError(Exception):
    """Another trainer has failed."""


class Clock:
    """Runs threads in turns. All methods but `run` are for the thread that has the baton."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._free_s = 0.0
        """When the machine has done what was asked of it so far."""
        self._heap: list[tuple[float, int, threading.Lock | _Action]] = []
        self._order = itertools.count()
        self._mine = threading.local()
        self._failed: BaseException | None = None
        self._over = threading.Lock()

    def run(self, trainers: Sequence[_Action]) -> None:
        """Run all of them to their ends, and what was left for later. Raises what the first to fail raised."""
        threads = []
        for trainer in trainers:
            baton = _taken()
            self._push(0.0, baton)
            thread = threading.Thread(target=self._live, args=(trainer, baton), daemon=True)
            thread.start()
            threads.append(thread)
        self._over.acquire()
        self._pass_on()
        with self._over:
            for thread in threads:
                thread.join()
        if self._failed is not None:
            raise self._failed

    def sleep(self, seconds: float) -> None:
        """Let others run until then. Nothing happens in no time: with 0 the caller keeps the baton."""
        if seconds <= 0.0:
            return
        baton: threading.Lock = self._mine.baton
        self._push(seconds, baton)
        self._pass_on()
        baton.acquire()
        if self._failed is not None:
            raise _StoppedError

    def later(self, seconds: float, action: _Action) -> None:
        """Do something then; now, with 0."""
        if seconds <= 0.0:
            action()
        else:
            self._push(seconds, action)

    def compute(self, seconds: float) -> None:
        """Wait for a turn on the one machine that all compute on, and for the turn to end."""
        self._free_s = max(self._free_s, self.now_s) + seconds
        self.sleep(self._free_s - self.now_s)

    def _push(self, seconds: float, what: threading.Lock | _Action) -> None:
        heapq.heappush(self._heap, (self.now_s + seconds, next(self._order), what))

    def _pass_on(self) -> None:
        """Do what is due before the next thread wakes, and give it the baton."""
        while self._heap:
            wake_s, _, what = heapq.heappop(self._heap)
            self.now_s = max(self.now_s, wake_s)
            if callable(what):
                self._do(what)
            else:
                what.release()
                return
        self._over.release()

    def _live(self, trainer: _Action, baton: threading.Lock) -> None:
        torch.set_num_threads(1)
        self._mine.baton = baton
        baton.acquire()
        if self._failed is None:
            self._do(trainer)
        self._pass_on()

    def _do(self, action: _Action) -> None:
        """Do something, and remember the first failure: whoever runs the clock raises it."""
        try:
            action()
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - none may be lost with its thread
            self._failed = self._failed or error


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
