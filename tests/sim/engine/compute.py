"""The compute thread of a simulated peer: one job after the other, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.sim.engine.peer import SimPeer

QUEUE_MAX: Final = 12
"""Jobs waiting; more are told "busy"."""


@dataclass(frozen=True, slots=True)
class _Job:
    seconds: float
    wanted: Callable[[], bool]
    ended: Callable[[bool], None]


class SimCompute:
    """Jobs of one process life.

    Args:
      peer: whose life it is: a job of a process that died never ends.
    """

    def __init__(self, peer: SimPeer) -> None:
        self._peer = peer
        self._waiting: deque[_Job] = deque()
        self._running = False

    @property
    def full(self) -> bool:
        return len(self._waiting) >= QUEUE_MAX

    def submit(
        self, seconds: float, wanted: Callable[[], bool], ended: Callable[[bool], None]
    ) -> None:
        """Queue a job.

        Args:
          wanted: asked when its turn comes; a caller that has given up has closed its stream.
          ended: told whether it was computed.
        """
        self._waiting.append(_Job(seconds, wanted, ended))
        if not self._running:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            if job.wanted():
                self._running = True
                self._peer.later(job.seconds, self._finish, job)
                return
            job.ended(False)

    def _finish(self, job: _Job) -> None:
        self._running = False
        job.ended(True)
        if not self._running:
            self._next()
