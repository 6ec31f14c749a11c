"""Which node hosts which expert, who keeps copies, who adopts orphans, and who gives way. One per node.

| an expert, as this node sees it | what happens |
|---|---|
| we had it last, have been away, and have its state | it is taken back: the newest copy of our own state, a newer epoch |
| nobody has ever had it, enough nodes are known | the node it is assigned to creates it, with a first epoch |
| its host is gone, a snapshot exists | the node it is assigned to adopts it: the same state, a newer epoch |
| its host is gone, everybody says that no snapshot exists | it begins anew, with a first epoch, and counts as lost |
| we host it, somebody has a better claim | we give way: drop it, and keep what we have as a snapshot |
| we host it, and leave, or host more than our share | it is handed over: frozen, fetched by the successor, a newer epoch |

Rules:
- Every node computes the same assignment from what it sees (`assignment`); when they see different things, two may host one
  expert for a moment, never with one epoch. The higher epoch wins; the other finds out from the directory and drops it, and
  looks there at once when a caller knows a newer epoch. A caller's word alone takes nothing from anybody.
- A host that does not answer is probed; only when that fails as well are its experts orphans.
- A snapshot counts when who signed it was seen as the host (`evidence`), and an expert begins anew only when all nodes have
  answered that they have none, or after minutes. Its epoch is a first one then: whoever still has what it had learned has the
  better claim.
- A handed-over expert is taken only from the host that the directory names.
- A node that has been away takes back what it had last, and leaves the rest to its hosts for a minute (`returning`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from protocols.core import DrainWanted, Tick
from protocols.experts.assignment import assign, fraction, preference
from protocols.experts.epoch import changes, next_epoch, plausible
from protocols.experts.events import (
    Adopt,
    Announce,
    AnswerHandOver,
    ClaimsSeen,
    Create,
    Doubt,
    Drop,
    Effect,
    Event,
    FindSnapshots,
    HandedOver,
    HandOverOffered,
    HandOverTo,
    Hosted,
    HostFailed,
    Left,
    LookAgain,
    NewerEpoch,
    NodesSeen,
    OffersFound,
    Probed,
    ProbePeer,
    SnapshotKept,
    Suspected,
    TakeSnapshot,
)
from protocols.experts.evidence import UNSEEN_S, Memory, choose
from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.returning import Returning
from protocols.experts.roster import Roster
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

TICK_S: Final = 0.5
LOOK_AGAIN_S: Final = 1.0
"""However many callers know newer epochs."""
REBALANCE_S: Final = 3.0
HAND_OVERS_MAX: Final = 4
"""At once: each freezes an expert."""
SNAPSHOT_AGAIN_S: Final = 1.0
"""After this a snapshot is tried again that too few have kept."""
ASKED_MAX: Final = 32
"""Nodes asked for a snapshot: those that keep it come first in the expert's own order of nodes."""


@dataclass(slots=True)
class _Own:
    epoch: int
    snapshot_due_s: float
    copying: bool = False
    """A snapshot is under way: on a slow node, or to a slow keeper, it may take longer than the pause between two."""
    moving: bool = False
    final: bool = False
    """We leave, and nobody has room for it: a last snapshot was asked for."""
    safe: bool = False
    """Somebody keeps that one."""


@dataclass(slots=True)
class Placement:
    """The core. See the top of this file.

    Args:
      uids: all experts of the run.
      room: experts that this node is willing to host; 0 for one that only trains.
      rng: draws the low bits of epochs; two hosts must not draw alike.
      orphan_after_s: nobody has had an expert for so long before somebody takes it.
      patience_s: the next in order takes it when the one before has not for so long.
    """

    me: PeerID
    uids: Sequence[ExpertUID]
    room: int
    keepers: int
    snapshot_every_s: float
    rng: random.Random
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
    taken_back: int = 0
    roster: Roster = field(default_factory=Roster)
    _claims: Mapping[ExpertUID, Sequence[Claim]] | None = None
    _memory: dict[ExpertUID, Memory] = field(init=False)
    _busy: dict[ExpertUID, str] = field(default_factory=dict)
    """What is under way for an expert that we do not host yet: find, create, adopt, take over, take back."""
    _returning: Returning = field(init=False)
    _taking: dict[tuple[ExpertUID, int], HandOverTo] = field(default_factory=dict)
    """To whom each of our experts is being handed over, by epoch: one that has come back may go again before the answer is there."""
    _hint_s: float = -math.inf
    _rebalance_at_s: float = 0.0
    _begun: bool = False
    _left: bool = False

    def __post_init__(self) -> None:
        self._memory = {uid: Memory() for uid in self.uids}
        self._returning = Returning(self.me)

    def restore(
        self,
        now_s: float,
        seen: Mapping[ExpertUID, Sequence[Seen]],
        offers: Mapping[ExpertUID, SnapshotOffer],
    ) -> None:
        """Go on from an earlier life of this node; before `start`.

        Args:
          seen: what `seen` said then.
          offers: of the snapshots that are here, our own among them.
        """
        self._returning.restore(now_s, self._memory, seen, offers)

    def start(self, now_s: float) -> Sequence[Effect]:
        self._rebalance_at_s = now_s + 2 * REBALANCE_S
        self.wake_at_s = now_s + TICK_S
        return ()

    def handle(self, event: Event) -> Sequence[Effect]:
        match event:
            case Tick(now_s):
                return self._tick(now_s)
            case NodesSeen(_, rooms):
                self.roster.seen(rooms)
                return ()
            case ClaimsSeen(now_s, claims):
                return self._claims_seen(now_s, claims)
            case Suspected(now_s, peer):
                return [ProbePeer(peer)] if self.roster.suspect(peer, now_s) else ()
            case Probed(now_s, peer, alive):
                if alive:
                    self.roster.down.pop(peer, None)
                    return ()
                self.roster.down.setdefault(peer, now_s)
                return [Doubt(peer)]
            case NewerEpoch(now_s, uid, epoch):
                return self._newer(now_s, uid, epoch)
            case OffersFound():
                return self._offers_found(event)
            case Hosted(now_s, uid, epoch):
                return self._hosted(now_s, uid, epoch)
            case HostFailed(_, uid):
                return self._host_failed(uid)
            case SnapshotKept(now_s, uid, keepers, leaving):
                self.roster.leave(leaving, now_s)
                return self._snapshot_kept(now_s, uid, keepers)
            case HandOverOffered(_, peer, offer, uid):
                return self._hand_over_offered(peer, offer, uid)
            case HandedOver():
                return self._handed_over(event)
            case DrainWanted(now_s):
                self.draining = True
                return self._hand_over_all(now_s)
            case _:
                assert_never(event)

    @property
    def hosting(self) -> Mapping[ExpertUID, int]:
        """What runs here, with epochs."""
        return {uid: own.epoch for uid, own in self.own.items()}

    def seen(self, uid: ExpertUID) -> Sequence[Seen]:
        """Return whom we have seen as hosts of an expert."""
        memory = self._memory.get(uid)
        return [Seen(*pair) for pair in memory.hosts.items()] if memory is not None else ()

    @property
    def to_take_back(self) -> int:
        """How many of the experts that we had before we were away are not back yet."""
        return len(self._returning.ours)

    @property
    def returning_until_s(self) -> float:
        """Until when experts that nobody has are left to those who had them before we were away."""
        return self._returning.until_s

    @property
    def sightings(self) -> int:
        """Grows whenever what `seen` returns changes."""
        return sum(memory.changes for memory in self._memory.values())

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
            live, own = self._live_claims(uid), self.own.get(uid)
            for claim in claims.get(uid, ())[:1]:  # those after it have been replaced, or say so
                if own is None or claim < Claim(own.epoch, self.me):
                    memory.seen(claim.epoch, claim.peer)
            if live:
                memory.alive |= live[0].epoch not in memory.before
                memory.epoch = max(memory.epoch, live[0].epoch)
            if live or own is not None:
                memory.found()
            elif memory.missing_since_s is None:
                memory.missing_since_s = now_s
            if own is not None and live and live[0] < Claim(own.epoch, self.me):
                effects += self._give_way(uid)
        return effects

    def _live_claims(self, uid: ExpertUID) -> Sequence[Claim]:
        """Return the claims that count: of hosts that are not down."""
        assert self._claims is not None
        return [claim for claim in self._claims.get(uid, ()) if claim.peer not in self.roster.down]

    def _newer(self, now_s: float, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        own = self.own.get(uid)
        if own is None or own.epoch >= epoch or now_s - self._hint_s < LOOK_AGAIN_S:
            return ()
        self._hint_s = now_s
        return [LookAgain(uid)]

    def _give_way(self, uid: ExpertUID) -> Sequence[Effect]:
        del self.own[uid]
        self.gave_way += 1
        return [Drop(uid, "superseded"), self._announce()]

    # --- taking what nobody has ---

    def _tick(self, now_s: float) -> Sequence[Effect]:
        self.wake_at_s = now_s + TICK_S
        self.roster.tick(now_s)
        if self.draining:
            return self._hand_over_all(now_s)
        effects: list[Effect] = [ProbePeer(peer) for peer in self.roster.due(now_s)]
        effects += self._snapshots(now_s)
        if self._claims is None or not self._may_begin():
            return effects
        effects += self._take_back()
        orphans = [
            uid
            for uid, memory in self._memory.items()
            if memory.missing_since_s is not None and uid not in self.own
        ]
        if orphans:
            left = self._returning.leaves_alone
            orphans = [uid for uid in orphans if not left(self._memory[uid], now_s)]
            effects += self._take(now_s, orphans) or self._make_room(now_s, orphans)
            self._rebalance_at_s = now_s + REBALANCE_S
        elif now_s >= self._rebalance_at_s:
            self._rebalance_at_s = now_s + REBALANCE_S
            effects += self._rebalance(now_s)
        return effects

    def _may_begin(self) -> bool:
        """Experts that nobody has had yet wait until those that start together have seen each other."""
        if not self._begun:
            seen = any(memory.epoch for memory in self._memory.values())
            self._begun = seen or len(self._live_rooms()) >= self.nodes_to_start
        return self._begun

    def _take_back(self) -> Sequence[Effect]:
        """Ask for copies of what we had last: on our disk it may be older than what its keepers have."""
        effects: list[Effect] = []
        for uid in [uid for uid in self._returning.ours if uid not in self._busy]:
            if not self._returning.is_ours_still(uid, self._live_claims(uid)):
                del self._returning.ours[uid]
            elif self._has_room:
                effects.append(self._find(uid, "take back"))
        return effects

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
            turn = int(waited_s / self.patience_s) + memory.failed
            if order[turn % len(order)] == self.me and self._has_room:
                effects.append(self._find(uid))
        return effects

    @property
    def _has_room(self) -> bool:
        return len(self.own) + len(self._busy) < self.room

    def _find(self, uid: ExpertUID, why: str = "find") -> FindSnapshots:
        """Ask for a snapshot. Its keepers come first in its own order, whoever its host was."""
        self._busy[uid] = why
        up = self._memory[uid].up = frozenset(self.roster.up)
        return FindSnapshots(uid, tuple(preference(uid, up)[:ASKED_MAX]))

    def _offers_found(self, event: OffersFound) -> Sequence[Effect]:
        uid, memory = event.uid, self._memory[event.uid]
        if self._busy[uid] == "take back":
            return self._own_found(event)
        if memory.missing_since_s is None:  # somebody has it meanwhile
            del self._busy[uid]
            return ()
        choice = choose(event, memory, self.me, self.roster)
        if choice == "wait":
            del self._busy[uid]  # ask again
            return ()
        self._busy[uid] = "create" if choice == "create" else "adopt"
        if choice == "create":
            return [Create(uid, next_epoch(0, self.rng), lost=memory.epoch > 0)]
        offer, donors = choice
        memory.tried = offer.root
        base = offer.epoch if plausible(offer.epoch) else 0
        return [Adopt(uid, next_epoch(max(memory.epoch, base), self.rng), offer, donors)]

    def _own_found(self, event: OffersFound) -> Sequence[Effect]:
        """Go on from the newest copy of what we had; from the next one when it could not be had."""
        uid, memory = event.uid, self._memory[event.uid]
        found = self._returning.newest_of_ours(event, memory)
        if found is None or not self._returning.is_ours_still(uid, self._live_claims(uid)):
            del self._busy[uid], self._returning.ours[uid]
            return ()
        offer, donors = found
        memory.tried = offer.root
        last = max(memory.epoch, offer.epoch)
        return [Adopt(uid, next_epoch(last, self.rng, taken_back=True), offer, donors)]

    def _hosted(self, now_s: float, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        how = self._busy.pop(uid, "")
        self._returning.ours.pop(uid, None)
        memory = self._memory[uid]
        live = self._live_claims(uid) if self._claims is not None else ()
        if live and live[0] < Claim(epoch, self.me):
            return [Drop(uid, "superseded")]
        self.created += how == "create"
        self.lost += how == "create" and memory.epoch > 0
        self.adopted += how == "adopt"
        self.taken_over += how == "take over"
        self.taken_back += how == "take back"
        memory.alive = True
        memory.seen(epoch, self.me)
        memory.epoch = epoch
        memory.found()
        # Spread out, so that a node's experts are not all copied in one moment; a new one soon.
        self.own[uid] = _Own(epoch, now_s + self.snapshot_every_s * fraction(uid))
        return [self._announce()]

    def _host_failed(self, uid: ExpertUID) -> Sequence[Effect]:
        if self._busy.pop(uid, None) in ("adopt", "take back"):
            memory = self._memory[uid]
            memory.failures.add(memory.tried)
            memory.failed += 1
        return ()

    # --- copies ---

    def _snapshots(self, now_s: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for uid, own in self.own.items():
            if own.snapshot_due_s <= now_s and not own.moving and not own.copying:
                own.snapshot_due_s = now_s + self.snapshot_every_s
                effects += self._snapshot(uid, own)
        return effects

    def _snapshot(self, uid: ExpertUID, own: _Own) -> Sequence[Effect]:
        keepers = tuple(preference(uid, self.roster.staying)[: self.keepers])
        own.copying = bool(keepers)
        return [TakeSnapshot(uid, own.epoch, keepers)] if keepers else ()

    def _snapshot_kept(self, now_s: float, uid: ExpertUID, keepers: int) -> Sequence[Effect]:
        own = self.own.get(uid)
        if own is None:
            return ()
        own.copying = False
        own.safe = keepers > 0 and own.final
        if keepers < self.keepers:
            own.snapshot_due_s = min(own.snapshot_due_s, now_s + SNAPSHOT_AGAIN_S)
        return ()

    # --- handing over ---

    def _rebalance(self, now_s: float) -> Sequence[Effect]:
        """Give one expert to the node that has least, when we have more than our share and it has less."""
        loads, mine = self._loads(), len(self.own)
        fair = len(self.uids) / max(1, len(self._live_rooms()))
        least = self._least(now_s)
        if least is None or mine <= fair or loads[least] + 2 > mine or self._taking:
            return ()
        return self._hand_over(self._best_for(least), least)

    def _make_room(self, now_s: float, orphans: Sequence[ExpertUID]) -> Sequence[Effect]:
        """Give an expert away when we are full and had one that nobody adopts: we may be the only one that knows its snapshot."""
        stuck = any(
            memory.missing_since_s is not None
            and now_s - memory.missing_since_s >= UNSEEN_S
            and self.me in memory.hosts.values()
            for memory in map(self._memory.__getitem__, orphans)
        )
        least = self._least(now_s)
        if self._has_room or not stuck or least is None or self._taking or not self.own:
            return ()
        return self._hand_over(self._best_for(least), least)

    def _least(self, now_s: float) -> PeerID | None:
        """Return who has the fewest experts of those that have room for one more."""
        rooms, loads = self._live_rooms(), self._loads()
        free = (node for node in self._takers(now_s, rooms) if loads[node] < rooms[node])
        return min(free, key=lambda node: (loads[node], node), default=None)

    def _best_for(self, node: PeerID) -> ExpertUID:
        """Return one of our experts that is this node's rather than ours."""
        return min(self.own, key=lambda uid: preference(uid, (self.me, node)).index(node))

    def _hand_over_all(self, now_s: float) -> Sequence[Effect]:
        """We leave: every expert goes to whoever has least, a few at a time; what nobody has room for is kept as a snapshot."""
        rooms, loads = self._live_rooms(), self._loads()
        full = not any(loads[node] < room for node, room in rooms.items())
        takers = self._takers(now_s, rooms)
        effects: list[Effect] = []
        for uid in [uid for uid, own in self.own.items() if not own.moving]:
            free = [node for node in preference(uid, takers) if loads[node] < rooms[node]]
            if not free or len(self._taking) >= HAND_OVERS_MAX:
                break
            to = min(free, key=lambda node: loads[node])
            loads[to] += 1
            effects += self._hand_over(uid, to)
        if full:
            effects += self._last_snapshots(now_s)
        if not self._left and not self._busy and not self._taking:
            self._left = all(own.safe for own in self.own.values()) if full else not self.own
            effects += [Left()] if self._left else []
        return effects

    def _last_snapshots(self, now_s: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for uid, own in self.own.items():
            if own.moving or own.copying:  # one that is under way knows less than the last
                continue
            if own.final and (own.safe or now_s < own.snapshot_due_s):
                continue
            wanted = self._snapshot(uid, own)
            own.final, own.safe = True, not wanted  # nobody is there to keep it
            own.snapshot_due_s = now_s + self.snapshot_every_s
            effects += wanted
        return effects

    def _takers(self, now_s: float, rooms: Mapping[PeerID, int]) -> list[PeerID]:
        """Return the others, but for those that have just refused."""
        return [
            node
            for node in rooms
            if node != self.me and not self.roster.has_just_refused(node, now_s)
        ]

    def _hand_over(self, uid: ExpertUID, to: PeerID) -> Sequence[Effect]:
        own = self.own[uid]
        own.moving = True
        hand_over = self._taking[uid, own.epoch] = HandOverTo(uid, own.epoch, to)
        return [hand_over]

    def _handed_over(self, event: HandedOver) -> Sequence[Effect]:
        uid = event.uid
        to = self._taking.pop((uid, event.epoch)).peer
        if not event.taken:
            self.roster.refused_s[to] = event.now_s
        elif changes(event.successor) == changes(event.epoch) + 1:
            # Before the directory says so: we may be gone by then, and come back before it does.
            memory = self._memory[uid]
            memory.seen(event.successor, to)
            memory.epoch = max(memory.epoch, event.successor)
        own = self.own.get(uid)
        if own is None or own.epoch != event.epoch:
            return ()
        own.moving = False
        if not event.taken:
            return ()
        del self.own[uid]
        self.handed_over += 1
        return [Drop(uid, "handed over"), self._announce()]

    def _hand_over_offered(
        self, peer: PeerID, offer: SnapshotOffer, uid: ExpertUID
    ) -> Sequence[Effect]:
        if (
            self._claims is None
            or uid not in self._memory
            or self.draining
            or uid in self._busy
            or uid in self.own
            or offer.host != peer
            or self._live_claims(uid)[:1] != [Claim(offer.epoch, peer)]
            or not self._has_room
        ):
            return [AnswerHandOver(uid)]
        self._busy[uid] = "take over"
        return [Adopt(uid, next_epoch(offer.epoch, self.rng), offer, (peer,))]

    # --- counting ---

    @property
    def free(self) -> int:
        """How many experts we have room for beside those that we host or are about to."""
        return 0 if self.draining else max(0, self.room - len(self.own) - len(self._busy))

    def spare(self) -> Mapping[PeerID, int]:
        """Return how many more experts each other node has room for."""
        loads = self._loads()
        rooms = self._live_rooms()
        return {node: room - loads[node] for node, room in rooms.items() if node != self.me}

    def _live_rooms(self) -> dict[PeerID, int]:
        staying = self.roster.staying
        rooms = {node: room for node, room in self.roster.rooms.items() if node in staying}
        if not self.draining:
            rooms[self.me] = self.room
        return {node: room for node, room in rooms.items() if room > 0}

    def _loads(self) -> Counter[PeerID]:
        """Count the experts of each node, by the claims that count."""
        loads: Counter[PeerID] = Counter({self.me: len(self.own)})
        for uid in self._claims or ():
            if uid not in self.own and (claims := self._live_claims(uid)):
                loads[claims[0].peer] += 1
        return loads

    def _announce(self) -> Announce:
        return Announce(tuple(sorted(self.hosting.items())))
