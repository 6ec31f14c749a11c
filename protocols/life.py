"""The life of a node: which state it is in, since when and why. A pure core: `(now, event) -> effects`.

    starting ----> joining ----> syncing <----> serving ----> draining ----> left
                      ^             |              |
                      +--------- isolated <--------+        (any state but left may drain or leave)

                   paused: in place of joining, syncing and isolated while the owner has the machine

Rules of this file:
- A state changes only as `TABLE` says. An event the table does not list for the state changes nothing but the reason:
  late and repeated reports are normal.
- Time comes in with the events; the core has no clock. Nothing here knows how peers are found or what is served.
- Facts outlive states: a node that was in step before it was cut off goes straight back to serving when it has peers
  again, unless its services have said that they fell behind.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from protocols.errors import LocalProtocolError


class LifeState(enum.StrEnum):
    """Where a node is in its life."""

    STARTING = "starting"
    """Local things only: identity, sockets."""
    JOINING = "joining"
    """Looking for peers of the run; goes on with backoff for as long as it takes."""
    SYNCING = "syncing"
    """Has peers, and fetches the state of what it is to host."""
    SERVING = "serving"
    """Does its work in the run."""
    ISOLATED = "isolated"
    """Had or wanted peers and has seen none for a while; re-dials."""
    PAUSED = "paused"
    """Its owner has the machine: it is in the network, holds nothing and does nothing. All is well."""
    DRAINING = "draining"
    """Takes nothing new, finishes what is in flight, then leaves."""
    LEFT = "left"
    """Nothing runs any more."""


# -- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """Identity and sockets are up."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Joined:
    """We are part of the swarm: a peer answered, or we are the first of a new swarm."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Synced:
    """All our services hold the state they need."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class FellBehind:
    """A service has to fetch state before it can go on (a new stage, steps missed)."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class PeersCounted:
    """How many peers we have a live connection to."""

    now_s: float
    count: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The owner wants the machine, before training has begun; a node that trains drains first."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The owner gives the machine again."""

    now_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Somebody wants us to leave in good order: a signal, the command line, a shutdown notice."""

    now_s: float
    reason: str
    deadline_s: float
    """Seconds from now; what is not done by then is dropped."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Every service has let go."""

    now_s: float


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """Leave at once: a second signal, or a failure we cannot live with."""

    now_s: float
    reason: str


Event: TypeAlias = (
    Started
    | Joined
    | Synced
    | FellBehind
    | PeersCounted
    | Paused
    | Resumed
    | DrainAsked
    | Drained
    | LeaveAsked
)


# -- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entered:
    """The state changed; say so once, in the log and to the supervisor."""

    state: LifeState
    reason: str


@dataclass(frozen=True, slots=True)
class Redial:
    """Dial the bootstrap addresses and remembered peers again, now."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop taking work and hand over what is held, within so many seconds."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    """Cancel everything and exit."""


Effect: TypeAlias = Entered | Redial | Drain | Leave


# -- the core --------------------------------------------------------------------------------------------------------

_S = LifeState

TABLE: Final[dict[LifeState, dict[type[Event], LifeState]]] = {
    _S.STARTING: {Started: _S.JOINING, DrainAsked: _S.DRAINING, LeaveAsked: _S.LEFT},
    _S.JOINING: {
        Joined: _S.SYNCING,
        Paused: _S.PAUSED,
        DrainAsked: _S.DRAINING,
        LeaveAsked: _S.LEFT,
    },
    _S.SYNCING: {
        Synced: _S.SERVING,
        Paused: _S.PAUSED,
        DrainAsked: _S.DRAINING,
        LeaveAsked: _S.LEFT,
    },
    _S.SERVING: {FellBehind: _S.SYNCING, DrainAsked: _S.DRAINING, LeaveAsked: _S.LEFT},
    _S.ISOLATED: {
        Joined: _S.SYNCING,
        Paused: _S.PAUSED,
        DrainAsked: _S.DRAINING,
        LeaveAsked: _S.LEFT,
    },
    _S.PAUSED: {Resumed: _S.JOINING, DrainAsked: _S.DRAINING, LeaveAsked: _S.LEFT},
    _S.DRAINING: {Drained: _S.LEFT, LeaveAsked: _S.LEFT},
    _S.LEFT: {},
}
"""state -> event -> next state. Isolation is not here: it comes from an absence, see `_count_peers`."""

MAY_BE_ISOLATED: Final = frozenset({_S.JOINING, _S.SYNCING, _S.SERVING})


@dataclass(frozen=True, slots=True)
class LifeSnapshot:
    """What `status` shows."""

    state: LifeState
    reason: str
    since_s: float
    """On the clock of the events."""
    peers: int


class Life:
    """One node's life.

    Args:
      now_s: when the process started, on the clock of all later events.
      isolated_after_s: seconds without any peer after which a node says that it is cut off.
      first: this node starts a new swarm, so having no peer is normal until it has had one.
    """

    def __init__(self, now_s: float, *, isolated_after_s: float, first: bool = False) -> None:
        self._state = LifeState.STARTING
        self._reason = "setting up identity and sockets"
        self._since_s = now_s
        self._isolated_after_s = isolated_after_s
        self._lonely_since_s = now_s
        self._first = first
        self._peers = 0
        self._joined: Joined | None = None
        self._synced: Synced | None = None

    @property
    def snapshot(self) -> LifeSnapshot:
        return LifeSnapshot(self._state, self._reason, self._since_s, self._peers)

    def handle(self, event: Event) -> list[Effect]:
        """Take one event and return what to do, in order. Raises LocalProtocolError when time runs backwards."""
        if event.now_s < self._since_s:
            raise LocalProtocolError(f"life at {self._since_s} was told of {event.now_s}")
        match event:
            case Started(now_s):
                self._lonely_since_s = now_s
                return self._step(event, "looking for peers")
            case Joined(now_s, reason):
                self._joined = event
                effects = self._step(event, reason)
                # What we held before is still held: do not wait for a second report of it.
                if self._synced and self._state is LifeState.SYNCING:
                    effects += self._step(Synced(now_s, self._synced.reason), self._synced.reason)
                return effects
            case Synced(_, reason):
                self._synced = event
                return self._step(event, reason)
            case FellBehind(_, reason):
                self._synced = None
                return self._step(event, reason)
            case PeersCounted():
                return self._count_peers(event)
            case Paused(_, reason):
                return self._step(event, reason)
            case Resumed(now_s, reason):
                self._lonely_since_s = now_s
                effects = self._step(event, reason)
                if effects and self._joined is not None:
                    effects += self._step(Joined(now_s, self._joined.reason), self._joined.reason)
                return effects
            case DrainAsked(_, reason, deadline_s):
                return self._step(event, reason, Drain(deadline_s))
            case Drained():
                return self._step(event, "everything was handed over or dropped", Leave())
            case LeaveAsked(_, reason):
                return self._step(event, reason, Leave())
            case _:
                assert_never(event)

    def _step(self, event: Event, reason: str, effect: Effect | None = None) -> list[Effect]:
        target = TABLE[self._state].get(type(event))
        if target is None:
            return []
        return self._enter(target, event.now_s, reason, effect)

    def _enter(
        self, state: LifeState, now_s: float, reason: str, effect: Effect | None
    ) -> list[Effect]:
        self._state, self._reason, self._since_s = state, reason, now_s
        return [Entered(state, reason)] + ([effect] if effect else [])

    def _count_peers(self, event: PeersCounted) -> list[Effect]:
        if event.count < 0:
            raise LocalProtocolError(f"a node cannot have {event.count} peers")
        if event.count or self._peers:
            # The wait starts when the last peer goes, not when the first count of zero is late.
            self._lonely_since_s = event.now_s
        self._peers = event.count
        if event.count:
            self._first = False
            return []
        lonely_s = event.now_s - self._lonely_since_s
        if self._first or self._state not in MAY_BE_ISOLATED or lonely_s < self._isolated_after_s:
            return []
        reason = f"no peer for {lonely_s:.0f} s"
        return self._enter(LifeState.ISOLATED, event.now_s, reason, Redial())
