"""Which node hosts which expert, who keeps copies, who adopts orphans, and who gives way. One per node.

| an expert, as this node sees it | what happens |
|---|---|
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
- A snapshot counts when who signed it is a host that we saw: the directory named it for that expert in that epoch. Nodes keep
  only what they saw so, too. What a stranger signed leaves those a while who have seen it, and counts then, after all others,
  when somebody else than its signer says so. Without a witness it never counts, though there be nothing else: anybody can
  sign for any epoch.
- Who does not answer, or was down when all were asked, may have a snapshot, and one that could not be fetched may be had
  yet: an expert begins anew only when all nodes have answered that they have none, or after minutes (GIVE_UP_S, SILENT_S).
  Its epoch is a first one then: whoever still has what it had learned has the better claim.
- A handed-over expert is taken only from the host that the directory names.
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
from protocols.experts.epoch import next_epoch, plausible
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
from protocols.experts.messages import HOSTS_MAX, Seen, SnapshotOffer
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
HAND_OVER_AGAIN_S: Final = 2.0
"""A node that has refused an expert is not offered one again sooner."""
SNAPSHOT_AGAIN_S: Final = 1.0
"""After this a snapshot is tried again that too few have kept."""
LEAVING_S: Final = 10.0
"""A node that said that it leaves counts for nothing so long; it may have come back since."""
ASKED_MAX: Final = 32
"""Nodes asked for a snapshot: those that keep it come first in the expert's own order of nodes."""
GIVE_UP_S: Final = 60.0
"""So long an expert is missing before nobody waits for nodes that are down."""
SILENT_S: Final = 180.0
"""And so long before nobody waits for those that are there and do not answer, or do not give what they offer, or are down
after they have offered something: each time another message may be lost."""
UNSEEN_S: Final = 30.0
"""So long who has not seen the signer of a snapshot lets those adopt it who have."""


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
class _Memory:
    """What was seen of an expert."""

    epoch: int = 0
    hosts: dict[int, PeerID] = field(default_factory=dict)
    """Epoch -> whom the directory named as its host; the latest last."""
    missing_since_s: float | None = None
    failed: int = 0
    """Our own tries to host it that came to nothing since somebody had it: each passes our turn on."""
    up: frozenset[PeerID] = frozenset()
    """Who was in the run, and not down, when all were last asked for a snapshot."""
    offered: bool = False
    """Somebody has offered a snapshot since it went missing."""
    tried: bytes = b""
    """Root of the snapshot that we fetch, or fetched last."""
    failures: set[bytes] = field(default_factory=set)
    """Roots of those that could not be had."""

    def seen(self, epoch: int, host: PeerID) -> None:
        """The directory names it as the host."""
        self.hosts[epoch] = self.hosts.pop(epoch, host)  # who states another's epoch comes later
        if len(self.hosts) > HOSTS_MAX:
            del self.hosts[next(iter(self.hosts))]

    def found(self) -> None:
        """It is missing no more."""
        self.missing_since_s = None
        self.failed = 0
        self.offered = False
        self.failures.clear()

    def signed_by_a_host(self, offer: SnapshotOffer) -> bool:
        """Tell whether who signed it had the expert then: anybody can sign for an epoch that never was."""
        return self.hosts.get(offer.epoch) == offer.host

    def is_newest(self, offer: SnapshotOffer) -> bool:
        """Tell whether it is of the last epoch that we saw: nobody can have one of a later."""
        return self.signed_by_a_host(offer) and offer.epoch == self.epoch


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
    _rooms: dict[PeerID, int] = field(default_factory=dict)
    _claims: Mapping[ExpertUID, Sequence[Claim]] | None = None
    _memory: dict[ExpertUID, _Memory] = field(default_factory=dict)
    _busy: dict[ExpertUID, str] = field(default_factory=dict)
    """What is under way for an expert that we do not host yet: find, create, adopt, take over."""
    _down: dict[PeerID, float] = field(default_factory=dict)
    """Who does not answer, with since when."""
    _probed_s: dict[PeerID, float] = field(default_factory=dict)
    _refused_s: dict[PeerID, float] = field(default_factory=dict)
    """When a node last did not take an expert from us."""
    _leaving_s: dict[PeerID, float] = field(default_factory=dict)
    """When a node last said that it leaves."""
    _taking: dict[ExpertUID, HandOverTo] = field(default_factory=dict)
    """To whom each of our experts is being handed over."""
    _hint_s: float = -math.inf
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
                self._nodes_seen(rooms)
                return ()
            case ClaimsSeen(now_s, claims):
                return self._claims_seen(now_s, claims)
            case Suspected(now_s, peer):
                return self._suspected(now_s, peer)
            case Probed(now_s, peer, alive):
                if alive:
                    self._down.pop(peer, None)
                    return ()
                self._down.setdefault(peer, now_s)
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
                self._leaving_s |= dict.fromkeys(leaving, now_s)
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
        return [claim for claim in self._claims.get(uid, ()) if claim.peer not in self._down]

    def _nodes_seen(self, rooms: Mapping[PeerID, int]) -> None:
        for peer in rooms.keys() - self._rooms.keys():
            self._down.pop(peer, None)
        self._rooms = dict(rooms)
        for times_s in (self._probed_s, self._refused_s, self._leaving_s):
            for peer in times_s.keys() - rooms.keys() - self._down.keys():
                del times_s[peer]

    def _suspected(self, now_s: float, peer: PeerID) -> Sequence[Effect]:
        if peer in self._down or now_s - self._probed_s.get(peer, -math.inf) < PROBE_AGAIN_S:
            return ()
        self._probed_s[peer] = now_s
        return [ProbePeer(peer)]

    def _probe_down(self, now_s: float) -> Sequence[Effect]:
        due = [
            peer
            for peer in sorted(self._down.keys() & self._rooms.keys())
            if now_s - self._probed_s.get(peer, -math.inf) >= PROBE_DOWN_S
        ]
        self._probed_s |= dict.fromkeys(due, now_s)
        return [ProbePeer(peer) for peer in due]

    def _newer(self, now_s: float, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        own = self.own.get(uid)
        if own is None or own.epoch >= epoch or now_s - self._hint_s < PROBE_AGAIN_S:
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
        for peer in [p for p, at_s in self._leaving_s.items() if now_s - at_s >= LEAVING_S]:
            del self._leaving_s[peer]
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
            effects += self._rebalance(now_s)
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
            turn = int(waited_s / self.patience_s) + memory.failed
            if order[turn % len(order)] == self.me and self._has_room:
                effects.append(self._find(uid))
        return effects

    @property
    def _has_room(self) -> bool:
        return len(self.own) + len(self._busy) < self.room

    def _find(self, uid: ExpertUID) -> FindSnapshots:
        """Ask for a snapshot. Its keepers come first in its own order, whoever its host was."""
        self._busy[uid] = "find"
        up = self._memory[uid].up = frozenset(self._rooms.keys() - self._down.keys())
        return FindSnapshots(uid, tuple(preference(uid, up)[:ASKED_MAX]))

    def _offers_found(self, event: OffersFound) -> Sequence[Effect]:
        uid, memory = event.uid, self._memory[event.uid]
        if memory.missing_since_s is None:  # somebody has it meanwhile
            del self._busy[uid]
            return ()
        missing_s = event.now_s - memory.missing_since_s
        ours = [(k, o) for k, o in event.offers if self._knows(k, o, memory)]
        good = [*ours, *(offer for offer in self._witnessed(event, missing_s) if offer not in ours)]
        best = max(  # what we know comes before what others do, and what can be fetched before what could not
            ((k, o) for k, o in good),
            key=lambda found: (found in ours, found[1].root not in memory.failures, found[1].age),
            default=(None, None),
        )[1]
        memory.offered |= best is not None
        newest = best is not None and memory.is_newest(best)
        strangers = [o for k, o in event.offers if (k, o) not in good]
        if not newest and self._waits(event, memory, best, strangers, missing_s):
            del self._busy[uid]  # ask again
            return ()
        if best is None or (missing_s >= SILENT_S and best.root in memory.failures):
            self._busy[uid] = "create"
            return [Create(uid, next_epoch(0, self.rng), lost=memory.epoch > 0)]
        memory.tried = best.root
        donors = tuple(keeper for keeper, offer in good if offer.root == best.root)
        base = best.epoch if plausible(best.epoch) else 0
        self._busy[uid] = "adopt"
        return [Adopt(uid, next_epoch(max(memory.epoch, base), self.rng), best, donors)]

    def _waits(
        self,
        event: OffersFound,
        memory: _Memory,
        best: SnapshotOffer | None,
        strangers: Sequence[SnapshotOffer],
        missing_s: float,
    ) -> bool:
        """Tell whether somebody may yet have, or know, something better."""
        # A snapshot that was offered once is worth the longer wait: its keeper is down now, or does not give it.
        long = memory.failures or (best is None and memory.offered)
        if event.silent and missing_s < SILENT_S:
            return True
        wait_s = SILENT_S if long else GIVE_UP_S
        unasked = self._rooms.keys() - memory.up
        if unasked and missing_s < wait_s:
            return True
        # One that a lost probe has made seem down just now would be done without, though all others have had a minute.
        lately = any(event.now_s - self._down.get(peer, event.now_s) < wait_s for peer in unasked)
        if lately and missing_s < SILENT_S:
            return True
        # A stranger's may be genuine: then somebody else knows its signer, and adopts it. That may take as long as it takes us.
        newer = any(best is None or offer.age > best.age for offer in strangers)
        return newer and missing_s < (SILENT_S if best is None else UNSEEN_S)

    def _knows(self, keeper: PeerID, offer: SnapshotOffer, memory: _Memory) -> bool:
        """Tell whether we know that a host signed it. What we keep was its host's when we took it; the key is ours for life."""
        return self.me in (keeper, offer.host) or memory.signed_by_a_host(offer)

    def _witnessed(
        self, event: OffersFound, missing_s: float
    ) -> Sequence[tuple[PeerID, SnapshotOffer]]:
        """Return the offers of which somebody else than the signer says that it was the host, when all others had their turn."""
        if missing_s < UNSEEN_S:
            return ()
        said = {(seen.epoch, seen.host) for node, seen in event.seen if node != seen.host}
        return [
            (keeper, offer)
            for keeper, offer in event.offers
            if keeper != offer.host or (offer.epoch, offer.host) in said
        ]

    def _hosted(self, now_s: float, uid: ExpertUID, epoch: int) -> Sequence[Effect]:
        how = self._busy.pop(uid, "")
        memory = self._memory[uid]
        live = self._live_claims(uid) if self._claims is not None else ()
        if live and live[0] < Claim(epoch, self.me):
            return [Drop(uid, "superseded")]
        self.created += how == "create"
        self.lost += how == "create" and memory.epoch > 0
        self.adopted += how == "adopt"
        self.taken_over += how == "take over"
        memory.seen(epoch, self.me)
        memory.epoch = epoch
        memory.found()
        # Spread out, so that a node's experts are not all copied in one moment; a new one soon.
        self.own[uid] = _Own(epoch, now_s + self.snapshot_every_s * fraction(uid))
        return [self._announce()]

    def _host_failed(self, uid: ExpertUID) -> Sequence[Effect]:
        if self._busy.pop(uid, None) == "adopt":
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
        nodes = self._rooms.keys() - self._down.keys() - self._leaving_s.keys()
        keepers = tuple(preference(uid, nodes)[: self.keepers])
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
        rooms, loads = self._live_rooms(), self._loads()
        mine = len(self.own)
        fair = len(self.uids) / max(1, len(rooms))
        least = min(
            (node for node in self._takers(now_s, rooms) if loads[node] < rooms[node]),
            key=lambda node: (loads[node], node),
            default=None,
        )
        if least is None or mine <= fair or loads[least] + 2 > mine or self._taking:
            return ()
        uid = min(self.own, key=lambda uid: preference(uid, (self.me, least)).index(least))
        return self._hand_over(uid, least)

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
            if node != self.me and now_s - self._refused_s.get(node, -math.inf) >= HAND_OVER_AGAIN_S
        ]

    def _hand_over(self, uid: ExpertUID, to: PeerID) -> Sequence[Effect]:
        own = self.own[uid]
        own.moving = True
        self._taking[uid] = HandOverTo(uid, own.epoch, to)
        return [self._taking[uid]]

    def _handed_over(self, event: HandedOver) -> Sequence[Effect]:
        uid = event.uid
        to = self._taking.get(uid)
        if to is not None and to.epoch == event.epoch:
            del self._taking[uid]
            if not event.taken:
                self._refused_s[to.peer] = event.now_s
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
        gone = self._down.keys() | self._leaving_s.keys()
        rooms = {node: room for node, room in self._rooms.items() if node not in gone}
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
