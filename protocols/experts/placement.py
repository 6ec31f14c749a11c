"""Which node hosts which expert, who keeps copies, who adopts orphans, and who gives way. One per node.

| an expert, as this node sees it | what happens |
|---|---|
| nobody has ever had it, enough nodes are known | the node it is assigned to creates it, with epoch 1 |
| its host is gone, a snapshot exists | the node it is assigned to adopts it: the same state, epoch + 1 |
| its host is gone, everybody was asked, no snapshot exists | it begins anew, epoch + 1, and counts as lost |
| we host it, somebody has a better claim | we give way: drop it |
| we host it, and leave, or host more than our share | it is handed over: frozen, fetched by the successor, epoch + 1 |

Rules:
- Every node computes the same assignment from what it sees (`assign`); when they see different things, two may host one
  expert for a moment. Then the higher epoch wins, and of equal epochs the smaller PeerID; the other finds out from the
  directory, or from a caller that knows the newer epoch, and drops it. A caller never asks a host of an older epoch.
- A host that does not answer is probed; only when that fails as well are its experts orphans.
- A snapshot counts when the host signed it that had the expert last, as far as we saw; offers of others come second.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from protocols.core import DrainWanted, Tick
from protocols.experts.messages import SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

TICK_S: Final = 0.5
PROBE_AGAIN_S: Final = 1.0
"""A peer is not probed again sooner, however many calls to it fail."""
PROBE_DOWN_S: Final = 5.0
"""One that did not answer is asked so often whether it is back."""
REBALANCE_S: Final = 3.0
HAND_OVERS_MAX: Final = 4
"""At once: each freezes an expert."""
ASKED_MAX: Final = 32
"""Nodes asked for a snapshot: those that keep it come first in the expert's own order of nodes."""


# --- events ---


@dataclass(frozen=True, slots=True)
class NodesSeen:
    """Who is in the run and could host, by the directory, ourselves left out: peer -> experts it has room for in all."""

    now_s: float
    rooms: Mapping[PeerID, int]


@dataclass(frozen=True, slots=True)
class ClaimsSeen:
    """Every claim to every expert, our own left out. Only once all prefixes have been looked up."""

    now_s: float
    claims: Mapping[ExpertUID, Sequence[Claim]]


@dataclass(frozen=True, slots=True)
class Suspected:
    """A call to this host failed."""

    now_s: float
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Probed:
    now_s: float
    peer: PeerID
    alive: bool


@dataclass(frozen=True, slots=True)
class NewerEpoch:
    """A caller knows a newer epoch of an expert than we host."""

    now_s: float
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class OffersFound:
    """What the nodes asked for a snapshot had; signatures are checked."""

    now_s: float
    uid: ExpertUID
    offers: tuple[tuple[PeerID, SnapshotOffer], ...]
    """With who keeps it."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """The expert runs here now."""

    now_s: float
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class HostFailed:
    """Fetching or building it did not work."""

    now_s: float
    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class HandOverOffered:
    """A host wants us to take its expert, which it has frozen; its signature is checked."""

    now_s: float
    peer: PeerID
    offer: SnapshotOffer
    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Our successor has it, or not; not knowing counts as not: epochs settle it."""

    now_s: float
    uid: ExpertUID
    taken: bool


Event: TypeAlias = (
    Tick
    | NodesSeen
    | ClaimsSeen
    | Suspected
    | Probed
    | NewerEpoch
    | OffersFound
    | Hosted
    | HostFailed
    | HandOverOffered
    | HandedOver
    | DrainWanted
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class Create:
    """Build the expert with its initial weights and host it."""

    uid: ExpertUID
    epoch: int
    lost: bool
    """It had been trained, and no snapshot was found."""


@dataclass(frozen=True, slots=True)
class FindSnapshots:
    """Ask these nodes, and ourselves, for the newest snapshot."""

    uid: ExpertUID
    nodes: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class Adopt:
    """Fetch this snapshot, from us if we keep it, and host the expert."""

    uid: ExpertUID
    epoch: int
    offer: SnapshotOffer
    donors: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class AnswerHandOver:
    """Refuse it. One that is taken is answered when it is hosted."""

    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop hosting it."""

    uid: ExpertUID
    reason: Literal["superseded", "handed over"]


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take a snapshot, if the expert has stepped since the last, and have these nodes keep it."""

    uid: ExpertUID
    epoch: int
    keepers: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class HandOverTo:
    """Freeze it, take a snapshot, and ask this node to take it."""

    uid: ExpertUID
    epoch: int
    peer: PeerID


@dataclass(frozen=True, slots=True)
class ProbePeer:
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Doubt:
    """Its records count for nothing until it writes newer ones."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class Announce:
    """This is what we host."""

    experts: tuple[tuple[ExpertUID, int], ...]
    """With epochs."""


@dataclass(frozen=True, slots=True)
class Left:
    """Nothing is held here any more."""


Effect: TypeAlias = (
    Create
    | FindSnapshots
    | Adopt
    | AnswerHandOver
    | Drop
    | TakeSnapshot
    | HandOverTo
    | ProbePeer
    | Doubt
    | Announce
    | Left
)


def preference(uid: ExpertUID, nodes: Iterable[PeerID]) -> list[PeerID]:
    """Return the nodes in the expert's own order (rendezvous hashing): the same for everybody, another for each expert."""

    def rank(node: PeerID) -> bytes:
        return hashlib.blake2b(b"%s\0%s" % (str(uid).encode(), node), digest_size=8).digest()

    return sorted(nodes, key=rank)


def assign(
    orphans: Iterable[ExpertUID],
    rooms: Mapping[PeerID, int],
    hosted: Mapping[PeerID, int],
    *,
    total: int,
) -> dict[ExpertUID, list[PeerID]]:
    """Return who should take each orphan, and who next if that one does not.

    A node below its fair share comes before one above it, then the expert's own order counts. Nodes without room get nothing.

    Args:
      rooms: experts each node has room for.
      hosted: experts each node has now.
      total: experts in the run.
    """
    load = Counter({node: hosted.get(node, 0) for node in rooms})
    share = math.ceil(total / max(1, len(rooms)))
    orders = {}
    for uid in sorted(orphans):
        free = [node for node in rooms if load[node] < rooms[node]]
        order = preference(uid, free)
        order.sort(key=lambda node: load[node] >= share)
        if order:
            load[order[0]] += 1
        orders[uid] = order
    return orders


@dataclass(slots=True)
class _Own:
    epoch: int
    snapshot_due_s: float
    moving: bool = False


@dataclass(slots=True)
class _Memory:
    """What was seen of an expert."""

    epoch: int = 0
    host: PeerID | None = None
    missing_since_s: float | None = None
    failed: int = 0
    """Our own tries to host it that came to nothing."""


@dataclass(slots=True)
class Placement:
    """The core. See the top of this file.

    Args:
      uids: all experts of the run.
      room: experts that this node is willing to host; 0 for one that only trains.
      orphan_after_s: nobody has had an expert for so long before somebody takes it.
      patience_s: the next in order takes it when the one before has not for so long.
    """

    me: PeerID
    uids: Sequence[ExpertUID]
    room: int
    keepers: int
    snapshot_every_s: float
    nodes_to_start: int = 1
    orphan_after_s: float = 2.0
    patience_s: float = 6.0
    wake_at_s: float = 0.0
    draining: bool = False
    own: dict[ExpertUID, _Own] = field(default_factory=dict)
    created: int = 0
    adopted: int = 0
    lost: int = 0
    gave_way: int = 0
    handed_over: int = 0
    taken_over: int = 0
    _rooms: dict[PeerID, int] = field(default_factory=dict)
    _claims: Mapping[ExpertUID, Sequence[Claim]] | None = None
    _memory: dict[ExpertUID, _Memory] = field(default_factory=dict)
    _busy: dict[ExpertUID, str] = field(default_factory=dict)
    """What is under way for an expert that we do not host yet: find, create, adopt, take over."""
    _down: set[PeerID] = field(default_factory=set)
    _probed_s: dict[PeerID, float] = field(default_factory=dict)
    _rebalance_at_s: float = 0.0
    _begun: bool = False
    _left: bool = False

    def start(self, now_s: float) -> Sequence[Effect]:
        self._memory = {uid: _Memory() for uid in self.uids}
        self._rebalance_at_s = now_s + 2 * REBALANCE_S
        self.wake_at_s = now_s + TICK_S
        return ()

    def handle(self, event: Event) -> Sequence[Effect]:
        match event:
            case Tick(now_s):
                return self._tick(now_s)
            case NodesSeen(_, rooms):
                self._down -= rooms.keys() - self._rooms.keys()
                self._rooms = dict(rooms)
                return ()
            case ClaimsSeen(now_s, claims):
                return self._claims_seen(now_s, claims)
            case Suspected(now_s, peer):
                return self._suspected(now_s, peer)
            case Probed(_, peer, alive):
                if alive:
                    self._down.discard(peer)
                    return ()
                self._down.add(peer)
                return [Doubt(peer)]
            case NewerEpoch(_, uid, epoch):
                return self._newer(uid, epoch)
            case OffersFound(_, uid, offers):
                return self._offers_found(uid, offers)
            case Hosted(now_s, uid, epoch):
                return self._hosted(now_s, uid, epoch)
            case HostFailed(now_s, uid):
                return self._host_failed(now_s, uid)
            case HandOverOffered(_, peer, offer, uid):
                return self._hand_over_offered(peer, offer, uid)
            case HandedOver(_, uid, taken):
                return self._handed_over(uid, taken)
            case DrainWanted(now_s):
                self.draining = True
                return self._hand_over_all(now_s)
            case _:
                assert_never(event)

    @property
    def hosting(self) -> Mapping[ExpertUID, int]:
        """What runs here, with epochs."""
        return {uid: own.epoch for uid, own in self.own.items()}

    @property
    def orphans(self) -> int:
        """Experts that nobody has, as far as we know."""
        return sum(memory.missing_since_s is not None for memory in self._memory.values())

    # --- what others have ---

    def _claims_seen(
        self, now_s: float, claims: Mapping[ExpertUID, Sequence[Claim]]
    ) -> Sequence[Effect]:
        self._claims = claims
        effects: list[Effect] = []
        for uid, memory in self._memory.items():
            live = [claim for claim in claims.get(uid, ()) if claim.peer not in self._down]
            if live and live[0].epoch >= memory.epoch:
                memory.epoch, memory.host = live[0].epoch, live[0].peer
            own = self.own.get(uid)
            if live or own is not None:
                memory.missing_since_s = None
            elif memory.missing_since_s is None:
                memory.missing_since_s = now_s
            if own is not None and live and live[0] < Claim(own.epoch, self.me):
                effects += self._give_way(uid)
        return effects

    def _suspected(self, now_s: float, peer: PeerID) -> Sequence[Effect]:
        if peer in self._down or now_s - self._probed_s.get(peer, -math.inf) < PROBE_AGAIN_S:
            return ()
        self._probed_s[peer] = now_s
        return [ProbePeer(peer)]

    def _probe_down(self, now_s: float) -> Sequence[Effect]:
        due = [
            peer
            for peer in sorted(self._down & self._rooms.keys())
            if now_s - self._probed_s.get(peer, -math.inf) >= PROBE_DOWN_S
        ]
        self._probed_s |= dict.fromkeys(due, now_s)
        return [ProbePeer(peer) for peer in due]

    def _newer(self, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        own = self.own.get(uid)
        return self._give_way(uid) if own is not None and own.epoch < epoch else ()

    def _give_way(self, uid: ExpertUID) -> Sequence[Effect]:
        del self.own[uid]
        self.gave_way += 1
        return [Drop(uid, "superseded"), self._announce()]

    # --- taking what nobody has ---

    def _tick(self, now_s: float) -> Sequence[Effect]:
        self.wake_at_s = now_s + TICK_S
        effects: list[Effect] = []
        if self.draining:
            return self._hand_over_all(now_s)
        effects += self._probe_down(now_s)
        effects += self._snapshots(now_s)
        if self._claims is None or not self._may_begin():
            return effects
        orphans = [
            uid
            for uid, memory in self._memory.items()
            if memory.missing_since_s is not None and uid not in self.own
        ]
        if orphans:
            effects += self._take(now_s, orphans)
            self._rebalance_at_s = now_s + REBALANCE_S
        elif now_s >= self._rebalance_at_s:
            self._rebalance_at_s = now_s + REBALANCE_S
            effects += self._rebalance()
        return effects

    def _may_begin(self) -> bool:
        """Experts that nobody has had yet wait until those that start together have seen each other."""
        if not self._begun:
            seen = any(memory.epoch for memory in self._memory.values())
            self._begun = seen or len(self._live_rooms()) >= self.nodes_to_start
        return self._begun

    def _take(self, now_s: float, orphans: Sequence[ExpertUID]) -> Sequence[Effect]:
        rooms = self._live_rooms()
        orders = assign(orphans, rooms, self._loads(), total=len(self.uids))
        effects: list[Effect] = []
        for uid, order in orders.items():
            memory = self._memory[uid]
            assert memory.missing_since_s is not None
            waited_s = now_s - memory.missing_since_s - self.orphan_after_s
            if waited_s < 0 or uid in self._busy or not order:
                continue
            turn = int(waited_s / self.patience_s)
            if order[turn % len(order)] == self.me:
                self._busy[uid] = "find"
                effects.append(FindSnapshots(uid, self._to_ask(uid)))
        return effects

    def _to_ask(self, uid: ExpertUID) -> tuple[PeerID, ...]:
        """Its keepers come first in its own order, whoever its host was."""
        nodes = [node for node in self._rooms if node not in self._down]
        return tuple(preference(uid, nodes)[:ASKED_MAX])

    def _offers_found(
        self, uid: ExpertUID, offers: Sequence[tuple[PeerID, SnapshotOffer]]
    ) -> Sequence[Effect]:
        memory = self._memory[uid]
        if self._busy.get(uid) != "find":
            return ()
        # A host that we saw is believed before one that we did not: anybody can sign for an epoch that never was.
        known = [(k, o) for k, o in offers if o.host == memory.host and o.epoch <= memory.epoch]
        best = max((offer for _, offer in known or offers), key=lambda o: o.age, default=None)
        if best is None:
            self._busy[uid] = "create"
            return [Create(uid, memory.epoch + 1, lost=memory.epoch > 0)]
        donors = tuple(keeper for keeper, offer in offers if offer.age == best.age)
        self._busy[uid] = "adopt"
        return [Adopt(uid, max(memory.epoch, best.epoch) + 1, best, donors)]

    def _hosted(self, now_s: float, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        how = self._busy.pop(uid, "")
        memory = self._memory[uid]
        if epoch < memory.epoch:
            return [Drop(uid, "superseded")]
        self.created += how == "create"
        self.lost += how == "create" and epoch > 1
        self.adopted += how == "adopt"
        self.taken_over += how == "take over"
        memory.epoch, memory.host, memory.missing_since_s = epoch, self.me, None
        # Spread out, so that a node's experts are not all copied in one moment; a new one soon.
        self.own[uid] = _Own(epoch, now_s + self.snapshot_every_s * _fraction(uid))
        return [self._announce()]

    def _host_failed(self, now_s: float, uid: ExpertUID) -> Sequence[Effect]:
        self._busy.pop(uid, None)
        memory = self._memory[uid]
        memory.failed += 1
        if memory.missing_since_s is not None:  # it is the next one's turn
            memory.missing_since_s = now_s - self.orphan_after_s - self.patience_s * memory.failed
        return ()

    # --- copies ---

    def _snapshots(self, now_s: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        if not self.keepers:
            return effects
        for uid, own in self.own.items():
            if own.snapshot_due_s <= now_s and not own.moving:
                own.snapshot_due_s = now_s + self.snapshot_every_s
                nodes = [node for node in self._rooms if node not in self._down]
                keepers = tuple(preference(uid, nodes)[: self.keepers])
                if keepers:
                    effects.append(TakeSnapshot(uid, own.epoch, keepers))
        return effects

    # --- handing over ---

    def _rebalance(self) -> Sequence[Effect]:
        """Give one expert to the node that has least, when we have more than our share and it has less."""
        rooms, loads = self._live_rooms(), self._loads()
        mine = len(self.own)
        fair = len(self.uids) / max(1, len(rooms))
        least = min(
            (node for node in rooms if node != self.me and loads[node] < rooms[node]),
            key=lambda node: (loads[node], node),
            default=None,
        )
        if least is None or mine <= fair or loads[least] + 2 > mine or self._moving():
            return ()
        uid = min(self.own, key=lambda uid: preference(uid, (self.me, least)).index(least))
        return self._hand_over(uid, least)

    def _hand_over_all(self, now_s: float) -> Sequence[Effect]:
        """We leave: every expert goes to whoever has least, a few at a time."""
        rooms = {node: room for node, room in self._live_rooms().items() if node != self.me}
        loads = self._loads()
        effects: list[Effect] = []
        for uid in [uid for uid, own in self.own.items() if not own.moving]:
            free = [node for node in preference(uid, rooms) if loads[node] < rooms[node]]
            if not free or self._moving() >= HAND_OVERS_MAX:
                break
            to = min(free, key=lambda node: loads[node])
            loads[to] += 1
            effects += self._hand_over(uid, to)
        if not self._left and (not self.own or not rooms):
            self._left = True
            effects.append(Left())
        return effects

    def _hand_over(self, uid: ExpertUID, to: PeerID) -> Sequence[Effect]:
        own = self.own[uid]
        own.moving = True
        return [HandOverTo(uid, own.epoch, to)]

    def _handed_over(self, uid: ExpertUID, taken: bool) -> Sequence[Effect]:
        own = self.own.get(uid)
        if own is None:
            return ()
        own.moving = False
        if not taken:
            return ()
        del self.own[uid]
        self.handed_over += 1
        return [Drop(uid, "handed over"), self._announce()]

    def _hand_over_offered(
        self, peer: PeerID, offer: SnapshotOffer, uid: ExpertUID
    ) -> Sequence[Effect]:
        memory = self._memory.get(uid)
        if (
            memory is None
            or self.draining
            or uid in self._busy
            or uid in self.own
            or offer.host != peer
            or offer.epoch < memory.epoch
            or len(self.own) + len(self._busy) >= self.room
        ):
            return [AnswerHandOver(uid)]
        self._busy[uid] = "take over"
        return [Adopt(uid, offer.epoch + 1, offer, (peer,))]

    # --- counting ---

    def _moving(self) -> int:
        return sum(own.moving for own in self.own.values())

    def _live_rooms(self) -> dict[PeerID, int]:
        rooms = {node: room for node, room in self._rooms.items() if node not in self._down}
        if not self.draining:
            rooms[self.me] = self.room
        return {node: room for node, room in rooms.items() if room > 0}

    def _loads(self) -> Counter[PeerID]:
        """Count the experts of each node, by the claims that count."""
        loads: Counter[PeerID] = Counter({self.me: len(self.own)})
        for uid, claims in (self._claims or {}).items():
            if claims and uid not in self.own:
                loads[claims[0].peer] += 1
        return loads

    def _announce(self) -> Announce:
        return Announce(tuple(sorted(self.hosting.items())))


def _fraction(uid: ExpertUID) -> float:
    """Return a number between 0 and 1 that is this expert's own."""
    return hashlib.blake2b(str(uid).encode(), digest_size=1).digest()[0] / 256
