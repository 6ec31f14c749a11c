"""Which experts other nodes answer for as well, and whom this node answers for. One per node.

A replica answers calls for an expert of another node, in that host's epoch, and steps a copy of its own; the two are averaged
every few seconds, weighted by the rows that each has trained on since (as FedAvg does, arXiv:1602.05629). It is never a host:
the host names its replicas in its own directory record, so nobody can make itself one, and adoption knows nothing of them.

| an expert, as its host sees it | what happens |
|---|---|
| it has fewer replicas than each is to have, or takes more than `popular` of our time | a node with room is asked to be one |
| it takes less than half of that for a while | its replicas are let go |
| a replica has not averaged for LOST_S | it is named no more |

| a replica, as it sees itself | what happens |
|---|---|
| its host does not answer | it goes on answering, for HOSTLESS_S: that is what bridges the time until somebody adopts the expert |
| its host lets it go, or somebody has a newer epoch | it stops |
| this node needs the room, hosts the expert itself, or leaves | it stops, and tells the host |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

from protocols.core import DrainWanted
from protocols.experts.messages import SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

LOST_S: Final = 15.0
HOSTLESS_S: Final = 90.0
APPOINT_AGAIN_S: Final = 5.0
"""A node that refused is asked again no sooner."""
CALM_S: Final = 30.0
"""An expert that is not popular any more keeps its replica for so long."""
APPOINTING_MAX: Final = 1
"""At once: each takes a snapshot, which is fetched."""


# --- events ---


@dataclass(frozen=True, slots=True)
class Measured:
    """How things stand here; again and again."""

    now_s: float
    own: Mapping[ExpertUID, int]
    """What we host, with epochs."""
    shares: Mapping[ExpertUID, float]
    """Of the time lately: how much of it each of those computed."""
    spare: Mapping[PeerID, int]
    """Other nodes that answer, and how many more experts each has room for."""
    free: int
    """How many experts we have room for beside those that we host or are about to."""


@dataclass(frozen=True, slots=True)
class RightfulSeen:
    """Who has each expert, by the directory, ourselves left out."""

    now_s: float
    claims: Mapping[ExpertUID, Sequence[Claim]]


@dataclass(frozen=True, slots=True)
class Appointed:
    """A node that we asked to be a replica is one, or not."""

    now_s: float
    appoint: Appoint
    taken: bool


@dataclass(frozen=True, slots=True)
class AverageAsked:
    """A replica of ours has averaged with us."""

    now_s: float
    uid: ExpertUID
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Offered:
    """A host wants us to be a replica of its expert; its signature is checked."""

    now_s: float
    peer: PeerID
    uid: ExpertUID
    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class Replicated:
    """We answer for it now; or it could not be fetched or built. The host is told afterwards."""

    now_s: float
    uid: ExpertUID
    done: bool


@dataclass(frozen=True, slots=True)
class AverageOver:
    """We have averaged with the host; `heard` is false when it did not answer."""

    now_s: float
    uid: ExpertUID
    epoch: int
    heard: bool


@dataclass(frozen=True, slots=True)
class Released:
    """A host lets its replica go, or a replica stops, says this peer."""

    peer: PeerID
    uid: ExpertUID
    epoch: int


Event: TypeAlias = (
    Measured
    | RightfulSeen
    | Appointed
    | AverageAsked
    | Offered
    | Replicated
    | AverageOver
    | Released
    | DrainWanted
)

# --- effects ---


@dataclass(frozen=True, slots=True)
class Appoint:
    """Take a snapshot, and ask this node to fetch it and to answer for the expert as well."""

    uid: ExpertUID
    epoch: int
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Name:
    """State these in our directory records from now on."""

    replicas: Mapping[ExpertUID, tuple[PeerID, ...]]


@dataclass(frozen=True, slots=True)
class Replicate:
    """Fetch this from its host, and answer for the expert."""

    uid: ExpertUID
    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class RefuseReplica:
    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class AverageWith:
    """Send the host our parameters, and take its answer."""

    uid: ExpertUID
    epoch: int
    host: PeerID


@dataclass(frozen=True, slots=True)
class StopServing:
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class Release:
    """Tell this peer that the replica is one no more."""

    uid: ExpertUID
    epoch: int
    peer: PeerID


Effect: TypeAlias = Appoint | Name | Replicate | RefuseReplica | AverageWith | StopServing | Release


@dataclass(slots=True)
class _Own:
    """An expert of ours."""

    epoch: int
    heard_s: dict[PeerID, float] = field(default_factory=dict)
    """Our replicas, with when each last averaged."""
    admitted_s: dict[PeerID, float] = field(default_factory=dict)
    """When each was last let average, whatever came of it."""
    wanted_s: float = -math.inf
    """When it last was popular."""


@dataclass(slots=True)
class _Serving:
    """An expert of another node that we answer for."""

    epoch: int
    host: PeerID
    due_s: float
    heard_s: float
    averaging: bool = False


@dataclass(slots=True)
class Replicas:
    """The core. See the top of this file.

    Args:
      each: replicas of every expert, as far as nodes have room.
      popular: an expert that takes more of its host's time has one more.
      average_s: between two averagings.
    """

    me: PeerID
    each: int
    popular: float
    average_s: float
    wake_at_s: float = math.inf
    """It goes by Measured, and needs no Tick."""
    own: dict[ExpertUID, _Own] = field(default_factory=dict)
    serving: dict[ExpertUID, _Serving] = field(default_factory=dict)
    averages: int = 0
    """Averagings with hosts that came to something."""
    _fetching: dict[ExpertUID, SnapshotOffer] = field(default_factory=dict)
    _appointing: set[ExpertUID] = field(default_factory=set)
    _asked_s: dict[PeerID, float] = field(default_factory=dict)
    _claims: Mapping[ExpertUID, Sequence[Claim]] = field(default_factory=dict)
    _free: int = 0
    _named: Mapping[ExpertUID, tuple[PeerID, ...]] = field(default_factory=dict)
    _leaving: bool = False

    def start(self, now_s: float) -> Sequence[Effect]:
        return ()

    def handle(self, event: Event) -> Sequence[Effect]:
        match event:
            case Measured():
                return self._measured(event)
            case RightfulSeen(_, claims):
                self._claims = claims
                gone = [uid for uid in self.serving if self._overtaken(uid)]
                return [effect for uid in gone for effect in self._stop(uid, tell=False)]
            case Appointed():
                return self._appointed(event)
            case AverageAsked(now_s, uid, peer):
                own = self.own.get(uid)
                if own is not None and peer in own.heard_s:
                    own.heard_s[peer] = now_s
                return ()
            case Offered():
                return self._offered(event)
            case Replicated():
                return self._replicated(event)
            case AverageOver():
                return self._average_over(event)
            case Released(peer, uid, epoch):
                return self._released(peer, uid, epoch)
            case DrainWanted():
                self._leaving = True
                return [*self._stop_all(), *self._let_all_go()]
            case _:
                assert_never(event)

    def is_replica(self, uid: ExpertUID, epoch: int, peer: PeerID) -> bool:
        """Tell whether a peer may average with the expert that we host."""
        own = self.own.get(uid)
        return own is not None and own.epoch == epoch and peer in own.heard_s

    def admits(self, uid: ExpertUID, peer: PeerID, now_s: float) -> bool:
        """Tell whether a replica may average now, and note that it does.

        Each averaging may replace half of what the expert is: ten at once would leave nothing of it.
        """
        admitted_s = self.own[uid].admitted_s
        if now_s - admitted_s.get(peer, -math.inf) < self.average_s / 2:
            return False
        admitted_s[peer] = now_s
        return True

    def forget(self, uid: ExpertUID) -> None:
        """We host this one ourselves from now on."""
        self.serving.pop(uid, None)

    # --- as a host ---

    def _measured(self, event: Measured) -> Sequence[Effect]:
        self._free = event.free
        effects: list[Effect] = [*self._make_room(), *self._average(event.now_s)]
        self.own = {
            uid: own
            if (own := self.own.get(uid)) is not None and own.epoch == epoch
            else _Own(epoch)
            for uid, epoch in event.own.items()
        }
        for uid, own in self.own.items():
            for peer in [p for p, at_s in own.heard_s.items() if event.now_s - at_s >= LOST_S]:
                del own.heard_s[peer]
            share = event.shares.get(uid, 0.0)
            if share > self.popular or (own.heard_s and share > self.popular / 2):
                own.wanted_s = event.now_s
            effects += self._let_go(uid, own, event.now_s)
        effects += self._name()
        if not self._leaving:
            effects += self._appoint(event)
        return effects

    def _wanted(self, own: _Own, now_s: float) -> int:
        return self.each + (now_s - own.wanted_s < CALM_S)

    def _let_go(self, uid: ExpertUID, own: _Own, now_s: float) -> Sequence[Effect]:
        surplus = sorted(own.heard_s)[self._wanted(own, now_s) :]
        for peer in surplus:
            del own.heard_s[peer]
        return [Release(uid, own.epoch, peer) for peer in surplus]

    def _appoint(self, event: Measured) -> Sequence[Effect]:
        """Ask the node with most room, for the expert that takes most of our time."""
        now_s = event.now_s
        wanting = [
            uid
            for uid, own in self.own.items()
            if len(own.heard_s) < self._wanted(own, now_s) and uid not in self._appointing
        ]
        for uid in sorted(wanting, key=lambda uid: (-event.shares.get(uid, 0.0), uid)):
            if len(self._appointing) >= APPOINTING_MAX:
                break
            own = self.own[uid]
            able = [
                (-spare, peer)
                for peer, spare in event.spare.items()
                if spare > 0
                and peer not in own.heard_s
                and now_s - self._asked_s.get(peer, -math.inf) >= APPOINT_AGAIN_S
            ]
            if able:
                _, peer = min(able)
                self._asked_s[peer] = now_s
                self._appointing.add(uid)
                return [Appoint(uid, own.epoch, peer)]
        return ()

    def _appointed(self, event: Appointed) -> Sequence[Effect]:
        uid, epoch, peer = event.appoint.uid, event.appoint.epoch, event.appoint.peer
        self._appointing.discard(uid)
        own = self.own.get(uid)
        if not event.taken:
            return ()
        if own is None or own.epoch != epoch or self._leaving:
            return [Release(uid, epoch, peer)]
        own.heard_s[peer] = event.now_s
        self._asked_s.pop(peer, None)  # it has room, perhaps for more
        return self._name()

    def _let_all_go(self) -> Sequence[Effect]:
        gone = [
            Release(uid, own.epoch, peer) for uid, own in self.own.items() for peer in own.heard_s
        ]
        for own in self.own.values():
            own.heard_s.clear()
        return [*gone, *self._name()]

    def _name(self) -> Sequence[Effect]:
        named = {uid: tuple(sorted(own.heard_s)) for uid, own in self.own.items() if own.heard_s}
        if named == self._named:
            return ()
        self._named = named
        return [Name(named)]

    # --- as a replica ---

    def _offered(self, event: Offered) -> Sequence[Effect]:
        uid, offer = event.uid, event.offer
        rightful = self._claims.get(uid, ())[:1]
        if (
            self._leaving
            or uid in self.serving
            or uid in self._fetching
            or uid in self.own
            or list(rightful) != [Claim(offer.epoch, event.peer)]
            or len(self.serving) + len(self._fetching) >= self._free
        ):
            return [RefuseReplica(uid)]
        self._fetching[uid] = offer
        return [Replicate(uid, offer)]

    def _replicated(self, event: Replicated) -> Sequence[Effect]:
        offer = self._fetching.pop(event.uid)
        if not event.done:
            return ()
        if event.uid in self.own or self._leaving:
            return [StopServing(event.uid, offer.epoch)]
        self.serving[event.uid] = _Serving(
            offer.epoch, offer.host, event.now_s + self.average_s, event.now_s
        )
        return self._stop(event.uid, tell=False) if self._overtaken(event.uid) else ()

    def _average(self, now_s: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for uid, serving in list(self.serving.items()):
            if now_s - serving.heard_s >= HOSTLESS_S:
                effects += self._stop(uid, tell=False)
            elif now_s >= serving.due_s and not serving.averaging:
                serving.averaging = True
                effects.append(AverageWith(uid, serving.epoch, serving.host))
        return effects

    def _average_over(self, event: AverageOver) -> Sequence[Effect]:
        serving = self.serving.get(event.uid)
        if serving is None or serving.epoch != event.epoch:
            return ()
        serving.averaging = False
        serving.due_s = event.now_s + self.average_s
        if event.heard:
            serving.heard_s = event.now_s
            self.averages += 1
        return ()

    def _released(self, peer: PeerID, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        own = self.own.get(uid)
        if own is not None and own.epoch == epoch and own.heard_s.pop(peer, None) is not None:
            return self._name()
        serving = self.serving.get(uid)
        if serving is not None and (serving.host, serving.epoch) == (peer, epoch):
            return self._stop(uid, tell=False)
        return ()

    def _make_room(self) -> Sequence[Effect]:
        """Hosting goes before answering for others."""
        surplus = len(self.serving) + len(self._fetching) - max(0, self._free)
        latest = sorted(self.serving)[: max(0, surplus)]
        return [effect for uid in latest for effect in self._stop(uid, tell=True)]

    def _overtaken(self, uid: ExpertUID) -> bool:
        claims = self._claims.get(uid, ())
        return bool(claims) and claims[0].epoch > self.serving[uid].epoch

    def _stop(self, uid: ExpertUID, *, tell: bool) -> Sequence[Effect]:
        serving = self.serving.pop(uid)
        stop = StopServing(uid, serving.epoch)
        return [stop, Release(uid, serving.epoch, serving.host)] if tell else [stop]

    def _stop_all(self) -> Sequence[Effect]:
        return [effect for uid in list(self.serving) for effect in self._stop(uid, tell=True)]
