"""The shell of `protocols.life`: gives the core its clock and carries out what it decides."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from protocols.life import (
    Drain,
    DrainAsked,
    Drained,
    Effect,
    Entered,
    Event,
    FellBehind,
    Joined,
    Leave,
    LeaveAsked,
    Life,
    LifeSnapshot,
    LifeState,
    Paused,
    PeersCounted,
    Redial,
    Resumed,
    Started,
    Synced,
)

log = logging.getLogger(__name__)


class NodeLife:
    """The node's one state machine. Services report to it; the daemon waits on its events.

    Args:
      drain_s: the deadline of a drain that names none: a signal's.
      on_change: told of every new state, for the supervisor's status line.
    """

    def __init__(
        self,
        *,
        isolated_after_s: float,
        first: bool,
        drain_s: float,
        on_change: Callable[[LifeSnapshot], None] | None = None,
    ) -> None:
        self._core = Life(trio.current_time(), isolated_after_s=isolated_after_s, first=first)
        self._on_change = on_change
        self._behind: dict[str, str] = {}
        self.drain_asked = trio.Event()
        self.drain_s = drain_s
        """Seconds the drain may take; a `drain` command may have set another number than the settings."""
        self.starts_again = False
        """It drains only to pause: the process goes on as a new one, unless it is asked to leave meanwhile."""
        self.leave_asked = trio.Event()
        self.redial = trio.Event()
        """Set when everybody we know should be dialled at once; the joining service replaces it by a new one."""

    @property
    def snapshot(self) -> LifeSnapshot:
        return self._core.snapshot

    @property
    def since_seconds(self) -> float:
        """How long the current state has lasted."""
        return trio.current_time() - self._core.snapshot.since_s

    @property
    def takes_work(self) -> bool:
        """False from the moment a drain is asked for."""
        return self.snapshot.state not in (LifeState.DRAINING, LifeState.LEFT)

    def started(self) -> None:
        """Identity and sockets are up."""
        self._handle(Started(trio.current_time()))

    def joined(self, reason: str) -> None:
        """A peer answered, or we begin a swarm."""
        self._handle(Joined(trio.current_time(), reason))

    def needs_state(self, service: str, reason: str) -> None:
        """`service` has to fetch state before it can do its work."""
        self._behind[service] = reason
        self._handle(FellBehind(trio.current_time(), f"{service}: {reason}"))

    def has_state(self, service: str, reason: str) -> None:
        """`service` holds what it needs; the node is synced once all of them say so."""
        self._behind.pop(service, None)
        if not self._behind:
            self._handle(Synced(trio.current_time(), f"{service}: {reason}"))

    def peers_counted(self, count: int) -> None:
        """How many live connections there are; reported regularly, since isolation is an absence."""
        self._handle(PeersCounted(trio.current_time(), count))

    def paused(self, reason: str) -> None:
        """The owner has the machine. Reported again and again, also when nothing changes."""
        self._handle(Paused(trio.current_time(), reason))

    def resumed(self, reason: str) -> None:
        """The owner gives the machine again; says nothing to a node that was not paused."""
        self._handle(Resumed(trio.current_time(), reason))

    def drain(self, reason: str, deadline_s: float | None = None) -> None:
        """Leave in good order. Asked twice, nothing changes: only `leave` is quicker. One that drains to pause leaves."""
        self.starts_again = False
        seconds = self.drain_s if deadline_s is None else deadline_s
        self._handle(DrainAsked(trio.current_time(), reason, seconds))

    def drain_to_pause(self, reason: str, deadline_s: float) -> None:
        """Let go of everything in good order, to start again as a node that rests."""
        self._handle(DrainAsked(trio.current_time(), f"to pause: {reason}", deadline_s))
        self.starts_again = True

    def drained(self) -> None:
        """Every service has let go."""
        self._handle(Drained(trio.current_time()))

    def leave(self, reason: str) -> None:
        """Leave at once."""
        self.starts_again = False
        self._handle(LeaveAsked(trio.current_time(), reason))

    def _handle(self, event: Event) -> None:
        for effect in self._core.handle(event):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Entered(state, reason):
                # A phrase for each state: of one that comes and goes, the others are still seen.
                log.info(f"state: {state} (%s)", reason)  # noqa: G004
                if self._on_change:
                    self._on_change(self.snapshot)
            case Redial():
                self.redial.set()
            case Drain(deadline_s):
                self.drain_s = deadline_s
                self.drain_asked.set()
            case Leave():
                self.leave_asked.set()
