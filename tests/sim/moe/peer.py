"""One simulated node of a moe run: the real cores, and a few lines in place of tensors, sockets and threads."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from protocols.core import DrainWanted
from protocols.experts.admission import judge_call, judge_gradient
from protocols.experts.announcements import Announcements
from protocols.experts.events import (
    Adopt,
    Announce,
    AnswerHandOver,
    ClaimsSeen,
    Create,
    Doubt,
    Drop,
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
from protocols.experts.lookups import LookUps
from protocols.experts.messages import (
    Alive,
    Average,
    HandOver,
    Keep,
    Kept,
    Message,
    Probe,
    ReplicaOver,
    ReplicaWanted,
    Seen,
    SnapshotOffer,
    Snapshots,
    SnapshotWanted,
    Taken,
)
from protocols.experts.placement import Placement
from protocols.experts.replicas import (
    Appoint,
    AverageWith,
    Name,
    RefuseReplica,
    Release,
    Replicate,
    StopServing,
)
from protocols.experts.shelf import Shelf
from protocols.experts.uid import ExpertUID, Prefix
from protocols.experts.view import HostStatement, PrefixView
from protocols.ids import PeerID
from tests.sim.engine.compute import SimCompute
from tests.sim.engine.peer import SimPeer
from tests.sim.moe.asking import DRAINING, REFUSED, ControlCall, ExpertCall, FetchCall
from tests.sim.moe.disk import Disk
from tests.sim.moe.notes import (
    Asked,
    ExpertStepped,
    Faulted,
    HostingBegun,
    HostingEnded,
    LookBegun,
    SnapshotStored,
)
from tests.sim.moe.records import Record
from tests.sim.moe.replicas import ReplicaShell
from tests.sim.moe.state import Held, HostedExpert, State, is_signed, offer_of
from tests.sim.moe.trainer import Search, Trainer

if TYPE_CHECKING:
    from tests.sim.moe.liar import LyingNode
    from tests.sim.moe.world import MoeWorld

FRESH_S: Final = 2.0
_LOOK_S: Final = 0.5
"""Between two looks whether anything is due; the daemon looks more often."""
_NODES_S: Final = 5.0
_FIRST_NODES_S: Final = 1.0
_WRITE_AGAIN_S: Final = 2.0
_PROBES: Final = 2
_FAREWELL_S: Final = 2.0


class MoePeer(SimPeer):
    """A node: its cores, the experts that run here, and the snapshots that are kept here.

    Args:
      room: experts that it is willing to host.
      trains: it sends batches to experts.
    """

    world: MoeWorld

    def __init__(self, world: MoeWorld, peer_id: PeerID, *, room: int, trains: bool) -> None:
        super().__init__(world, peer_id)
        self.room = room
        self.trains = trains
        self.lies: LyingNode | None = None

    # --- life ---

    def boot(self, saved: Disk | None) -> None:
        world = self.world
        self.disk = saved or Disk()
        self.found = self.disk.copy()
        """What was on the disk when this life began."""
        self.booted_s = self.now_s
        self.view = PrefixView(fresh_s=FRESH_S)
        self.view.own(self.peer_id, {})
        for grid in world.watched:
            self.view.want(grid.prefixes())
        self.looks = LookUps(self.view)
        self.searches: list[Search] = []
        self.announcements = Announcements()
        self.shelf = Shelf()
        self.compute = SimCompute(self)
        self.experts: dict[ExpertUID, HostedExpert] = {}
        self.own: dict[ExpertUID, Held] = {}
        self.kept: dict[ExpertUID, State] = {}
        self.rooms: dict[PeerID, int] = {}
        self._handing: dict[ExpertUID, Callable[[Any], None]] = {}
        self.core = Placement(
            self.peer_id,
            world.uids,
            self.room,
            world.keepers,
            world.snapshot_every_s,
            random.Random(self.rng.getrandbits(64)),
            nodes_to_start=world.nodes_to_start,
        )
        for uid, held in self.found.held.items():
            self.shelf.put_own(uid, held.offer)
            self.kept[uid] = held.state
        self.core.restore(self.now_s, self.found.seen, self.found.offers)
        self.begin(self.core)
        self.replicas = ReplicaShell(self)
        self.trainer = Trainer(self) if self.trains else None
        self._see_nodes()
        self._look_again()
        self._renew()
        self.later(world.checkpoint_s * self.rng.random(), self._write_disk)

    def saved(self) -> Disk | None:
        return self.disk if self.disk.seen else None

    def _write_disk(self) -> None:
        """Write what it holds, again and again; whom it has seen is written when it changes."""
        self.disk.write(self)
        self.later(self.world.checkpoint_s, self._write_disk)

    def leave_in_order(self) -> None:
        self.replicas.drain()
        self.feed(DrainWanted(self.now_s))
        self.later(self.world.drain_s, self.gone)

    def take(self, source: PeerID, message: Any) -> None:
        raise TypeError("nodes of a moe run only call each other")

    def crash(self) -> None:
        for expert in self.experts.values():
            self.note(HostingEnded(expert.uid, expert.epoch))
        self.experts = {}
        super().crash()

    def feed(self, event: Any) -> None:
        self.drive(self.core, event)

    def note(self, what: object) -> None:
        self.world.watch.see(self, what)

    def suspect(self, peer: PeerID) -> None:
        """A call could not reach it."""
        if peer != self.peer_id:
            self.feed(Suspected(self.now_s, peer))

    # --- the directory ---

    def _see_nodes(self) -> None:
        """Look who takes part, again and again."""
        directory = self.world.directory
        if directory.available:
            peers = self.world.peers
            self.rooms = {
                peer: peers[peer].room
                for peer in directory.members()
                if peer != self.peer_id and peer in peers
            }
            self.feed(NodesSeen(self.now_s, dict(self.rooms)))
        begun = any(memory.epoch for memory in self.core._memory.values())
        self.later(_NODES_S if begun else _FIRST_NODES_S, self._see_nodes)

    def _look_again(self) -> None:
        self.look()
        self.later(_LOOK_S, self._look_again)

    def look(self) -> None:
        """Look up what is due or asked for."""
        for prefix in self.looks.begin(self.now_s):
            self.note(LookBegun(prefix))
            seconds = self.world.look_up_s()
            if self.view.asked_s(prefix) == -math.inf:
                self.later(seconds / 4, self._began_to_answer, prefix, self.now_s)
            self.later(seconds, self._looked_up, prefix, self.now_s)

    def _began_to_answer(self, prefix: Prefix, asked_s: float) -> None:
        some = self.world.first_of(self.world.records.look(prefix))
        if some and self.world.directory.available:
            statements = [self._statement(record) for record in some]
            self.looks.began_to_answer(prefix, statements, asked_s=asked_s)
            self._go_on_searching()

    def _looked_up(self, prefix: Prefix, asked_s: float) -> None:
        statements = None
        if self.world.directory.available:
            records = self.world.records.look(prefix)
            if any(record.peer == self.peer_id for record in records):
                self._found_own(prefix)
            statements = [self._statement(record) for record in records]
        tell = self.looks.ended(prefix, statements, asked_s=asked_s, now_s=self.now_s)
        self._go_on_searching()
        self.look()
        if tell:
            self.see_claims()

    def _go_on_searching(self) -> None:
        for search in tuple(self.searches):
            search.proceed()

    def _statement(self, record: Record) -> HostStatement:
        left_s = record.expires_s - self.world.clock.now_s
        return HostStatement(record.peer, record.stated, self.now_s + left_s, record.issued_s)

    def _found_own(self, prefix: Prefix) -> None:
        if self.announcements.found(prefix):
            self._write()

    def see_claims(self) -> None:
        """Tell the core what the directory has said."""
        if not self.view.complete(self.world.watched):
            return
        claims = {}
        for uid in self.world.uids:
            found = [
                claim for claim in self.view.claims(uid, self.now_s) if claim.peer != self.peer_id
            ]
            if found:
                claims[uid] = found
        self.feed(ClaimsSeen(self.now_s, claims))
        self.disk.see(self)
        self.replicas.claims_seen(claims)

    def _write(self) -> None:
        directory, records = self.world.directory, self.world.records
        changes = self.announcements.changes()
        if changes and not directory.available:
            self.later(_WRITE_AGAIN_S, self._write)
            return
        for prefix, value in changes:
            records.write(self.peer_id, prefix, value)
            self.announcements.wrote(prefix, value)

    def _renew(self) -> None:
        """Records are written again before they expire."""
        records = self.world.records
        if self.world.directory.available:
            for prefix, value in self.announcements.written.items():
                records.write(self.peer_id, prefix, value)
        self.later(records.lifetime_s / 3, self._renew)

    # --- what the core says ---

    def do(self, effect: Any) -> None:
        if isinstance(effect, Create | Adopt | Drop | HandOverTo | FindSnapshots):
            self.world.log(f"{self.name} {effect}")
        match effect:
            case Create(uid, epoch, _):
                self._host(uid, epoch, None)
            case FindSnapshots(uid, nodes):
                self._find_snapshots(uid, nodes)
            case Adopt(uid, epoch, offer, donors):
                self._adopt(uid, epoch, offer, donors)
            case AnswerHandOver(uid):
                self._answer_hand_over(uid, epoch=0)
            case Drop(uid, reason):
                self._drop(uid, superseded=reason == "superseded")
            case TakeSnapshot(uid, epoch, keepers):
                self.snapshot(uid, partial(self._send_to_keepers, uid, epoch, keepers))
            case HandOverTo(uid, epoch, peer):
                self._hand_over(uid, epoch, peer)
            case ProbePeer(peer):
                self._probe(peer, _PROBES)
            case LookAgain(uid):
                self.looks.hurry(uid.prefixes[-1:], self.now_s)
                self.look()
            case Doubt(peer):
                self.view.doubt(peer)
                self.later(0.0, self.see_claims)
            case Announce():
                self.announce()
            case Left():
                self.later(self.world.scaled(_FAREWELL_S) * self.rng.random(), self.gone)
            case Appoint() | Name() | Replicate() | RefuseReplica() | AverageWith():
                self.replicas.do(effect)
            case StopServing() | Release():
                self.replicas.do(effect)
            case _:
                super().do(effect)

    def announce(self) -> None:
        """State what is hosted here, and its replicas."""
        hosted = self.core.hosting
        named = {uid: peers for uid, peers in self.replicas.named.items() if uid in hosted}
        self.view.own(self.peer_id, hosted, named)
        self.announcements.announce(hosted, named)
        self._write()

    # --- hosting ---

    def _host(self, uid: ExpertUID, epoch: int, state: State | None) -> None:
        self.compute.submit(
            self.world.build_s * self.slowness,
            lambda: True,
            partial(self._built, uid, epoch, state),
        )

    def _built(self, uid: ExpertUID, epoch: int, state: State | None, done: bool) -> None:
        version = state.version if state is not None else 0
        forged = state is not None and state.forged
        self.replicas.hosted(uid)
        self.experts[uid] = HostedExpert(uid, epoch, version, forged=forged)
        self.note(HostingBegun(uid, epoch, state))
        self.world.log(f"{self.name} hosts {uid} in epoch {epoch} from {state}")
        self.feed(Hosted(self.now_s, uid, epoch))
        self.disk.see(self)
        self._answer_hand_over(uid, epoch=epoch if uid in self.experts else 0)

    def _drop(self, uid: ExpertUID, *, superseded: bool) -> None:
        expert = self.experts.pop(uid, None)
        if expert is not None:
            self.note(HostingEnded(uid, expert.epoch))
        held = self.own.pop(uid, None)
        if held is not None and superseded and self.shelf.put_own(uid, held.offer):
            self.kept[uid] = held.state

    def _adopt(
        self, uid: ExpertUID, epoch: int, offer: SnapshotOffer, donors: Sequence[PeerID]
    ) -> None:
        kept = self.shelf.offers.get(uid)
        if kept is not None and kept.root == offer.root:
            self._host(uid, epoch, self.kept[uid])
            return
        left = [donor for donor in donors if donor != self.peer_id]

        def fetched(state: State | None) -> None:
            if state is not None and state.root == offer.root:
                self._host(uid, epoch, state)
            else:
                next_one()

        def next_one() -> None:
            if left:
                FetchCall(self, left.pop(0), offer, fetched).begin(self.world.keep_s)
            else:
                self.feed(HostFailed(self.now_s, uid))
                self._answer_hand_over(uid, epoch=0)

        next_one()

    def snapshot_at(self, offer: SnapshotOffer, asker: MoePeer) -> State | None:
        """Return what the service `state` gives."""
        uid = ExpertUID.from_text(offer.uid)
        if self.lies is not None and (lie := self.lies.snapshot(offer, asker)) is not None:
            return lie
        held = self.own.get(uid)
        for state in (held.state if held is not None else None, self.kept.get(uid)):
            if state is not None and (state.epoch, state.version) == offer.age:
                return state
        return None

    # --- snapshots ---

    def snapshot(self, uid: ExpertUID, then: Callable[[Held | None], None]) -> None:
        """Take the state on the compute thread, after what waits there."""

        def taken(done: bool) -> None:
            expert = self.experts.get(uid)
            if expert is None:
                then(None)
                return
            held = self.own.get(uid)
            if held is None or held.state != expert.state:
                held = self.own[uid] = Held(offer_of(expert.state, self.peer_id), expert.state)
            then(held)

        self.compute.submit(self.world.step_s * self.slowness, lambda: True, taken)

    def _send_to_keepers(
        self, uid: ExpertUID, epoch: int, keepers: Sequence[PeerID], held: Held | None
    ) -> None:
        if held is None or held.offer.epoch != epoch:
            return
        left, kept, leaving = list(keepers), 0, list[PeerID]()

        def answered(keeper: PeerID, answer: Any) -> None:
            nonlocal kept
            kept += isinstance(answer, Kept) and answer.kept
            if answer == DRAINING:
                leaving.append(keeper)
            next_one()

        def next_one() -> None:
            if left:
                keeper = left.pop(0)
                done = partial(answered, keeper)
                self._ask(keeper, Keep(held.offer), self.world.keep_s, done)
            else:
                self.feed(SnapshotKept(self.now_s, uid, kept, tuple(leaving)))

        next_one()

    def _find_snapshots(self, uid: ExpertUID, nodes: Sequence[PeerID]) -> None:
        offers: list[tuple[PeerID, SnapshotOffer]] = []
        silent: list[PeerID] = []
        seen: list[tuple[PeerID, Seen]] = []
        left = len(nodes)

        def answered(node: PeerID, answer: Any) -> None:
            nonlocal left
            left -= 1
            if answer is None:
                silent.append(node)
            elif isinstance(answer, Snapshots):
                seen.extend((node, host) for host in answer.hosts)
                if answer.offer is None:
                    pass
                elif answer.offer.uid == str(uid) and is_signed(answer.offer):
                    offers.append((node, answer.offer))
                else:
                    self.note(Faulted(node, "offered a snapshot that its host did not sign"))
            if left == 0:
                found()

        def found() -> None:
            if uid in self.shelf.offers:
                offers.append((self.peer_id, self.shelf.offers[uid]))
            found = OffersFound(self.now_s, uid, tuple(offers), tuple(silent), tuple(seen))
            self.feed(found)

        for node in nodes:
            self._ask(node, SnapshotWanted(str(uid)), self.world.ask_s, partial(answered, node))
        if not nodes:
            self.later(0.0, found)

    # --- leaving, and who is there ---

    def _hand_over(self, uid: ExpertUID, epoch: int, peer: PeerID) -> None:
        expert = self.experts.get(uid)
        if expert is None:
            self.later(0.0, self.feed, HandedOver(self.now_s, uid, epoch, False))
            return
        expert.frozen = True

        def answered(answer: Any) -> None:
            expert.frozen = False
            taken = isinstance(answer, Taken) and answer.taken
            successor = answer.epoch if taken else 0
            self.feed(HandedOver(self.now_s, uid, epoch, taken, successor))
            self.disk.see(self)

        def snapped(held: Held | None) -> None:
            if held is None:
                answered(None)
            else:
                self._ask(peer, HandOver(held.offer), self.world.keep_s, answered)

        self.snapshot(uid, snapped)

    def _probe(self, peer: PeerID, tries: int) -> None:
        def answered(answer: Any) -> None:
            if not isinstance(answer, Alive) and tries > 1:
                self._probe(peer, tries - 1)
            else:
                self.feed(Probed(self.now_s, peer, isinstance(answer, Alive)))

        self._ask(peer, Probe(), self.world.probe_s, answered)

    def _ask(
        self, peer: PeerID, message: Message, deadline_s: float, done: Callable[[Any], None]
    ) -> None:
        def ended(answer: Any) -> None:
            if answer is None and not isinstance(message, Probe):
                self.suspect(peer)
            done(answer)

        self.note(Asked(peer, message))
        ControlCall(self, peer, message, ended).begin(deadline_s)

    # --- what others ask ---

    def answer(self, source: PeerID, message: Message, reply: Callable[[Any], None]) -> None:
        """Answer one message of the service `experts`."""
        match message:
            case Probe():
                reply(Alive())
            case SnapshotWanted(text):
                uid = ExpertUID.from_text(text)
                snapshots = Snapshots(self._newest(uid), tuple(self.core.seen(uid)))
                if self.lies is not None:
                    snapshots = self.lies.offer(uid, snapshots)
                reply(snapshots)
            case Keep(offer):
                self._keep(source, offer, reply)
            case HandOver(offer):
                self._take_over(source, offer, reply)
            case Average():
                self.replicas.average(source, message, reply)
            case ReplicaWanted(offer):
                if (of := self._offered(source, offer)) is None:
                    reply(REFUSED)
                else:
                    self.replicas.offered(source, of, offer, reply)
            case ReplicaOver():
                self.replicas.released(source, message)
                reply(Alive())

    def _newest(self, uid: ExpertUID) -> SnapshotOffer | None:
        """Return the newest snapshot that is here. Who asks a host of one takes it for dead."""
        held = self.own.get(uid)
        return held.offer if held is not None else self.shelf.offers.get(uid)

    def _offered(self, source: PeerID, offer: SnapshotOffer) -> ExpertUID | None:
        """Check what a host says of its own expert."""
        uid = ExpertUID.from_text(offer.uid)
        if uid not in self.core._memory or offer.host != source or not is_signed(offer):
            self.note(Faulted(source, "an offer of no expert of its own"))
            return None
        return uid

    def _keep(self, source: PeerID, offer: SnapshotOffer, reply: Callable[[Any], None]) -> None:
        uid = self._offered(source, offer)
        if uid is None:
            reply(REFUSED)
            return
        if self.core.draining:
            reply(DRAINING)
            return
        hosts = self.view.hosts(uid, self.now_s)
        verdict = self.shelf.judge(uid, offer, hosts)
        if verdict == "overtaken":
            for claim in hosts[:1]:
                self.suspect(claim.peer)
        if verdict != "fetch":
            reply(REFUSED if verdict == "overtaken" else Kept(verdict == "kept"))
            return

        def fetched(state: State | None) -> None:
            if state is None or state.root != offer.root:
                reply(Kept(False))
                return
            kept = self.shelf.put(uid, offer, self.view.hosts(uid, self.now_s))
            if kept:
                self.kept[uid] = state
                self.note(SnapshotStored(uid, state))
            reply(Kept(kept))

        FetchCall(self, source, offer, fetched).begin(self.world.keep_s)

    def _take_over(
        self, source: PeerID, offer: SnapshotOffer, reply: Callable[[Any], None]
    ) -> None:
        uid = self._offered(source, offer)
        if uid is None or uid in self._handing:
            reply(REFUSED)
            return
        self._handing[uid] = reply
        self.feed(HandOverOffered(self.now_s, source, offer, uid))

    def _answer_hand_over(self, uid: ExpertUID, *, epoch: int) -> None:
        reply = self._handing.pop(uid, None)
        if reply is not None:
            reply(Taken(epoch > 0, epoch))

    def compute_for(self, call: ExpertCall) -> None:
        """Take a forward or backward call."""
        expert = self.experts.get(call.uid) or self.replicas.serving.get(call.uid)
        verdict = judge_call(
            expert.epoch if expert is not None else None,
            call.epoch,
            frozen=expert is not None and expert.frozen,
        )
        if verdict == "adopted" and call.uid in self.replicas.serving:
            self.looks.hurry(call.uid.prefixes[-1:], self.now_s)
        elif verdict == "adopted":
            self.feed(NewerEpoch(self.now_s, call.uid, call.epoch))
        if verdict != "taken" or expert is None:
            call.answer("draining" if verdict == "draining" else "not-here")
            return
        if call.version is not None:
            staleness_max = self.world.staleness_max
            verdict = judge_gradient(
                expert.epoch, expert.version, asked_epoch=call.epoch,
                asked_version=call.version, staleness_max=staleness_max,
            )  # fmt: skip
        if verdict != "taken":
            call.answer(verdict)
        elif self.compute.full or self.happens(self.world.busy):
            call.answer("busy")
        else:
            seconds = self.world.step_s * self.slowness
            self.compute.submit(seconds, call.wanted, partial(self._computed, call, expert))

    def _computed(self, call: ExpertCall, expert: HostedExpert, done: bool) -> None:
        if not done:
            return
        if self.lies is not None and self.happens(0.1):
            call.answer("wrong")
            return
        if call.version is not None:
            expert.version += 1
            if self.experts.get(expert.uid) is expert:
                self.note(ExpertStepped(expert.uid, expert.epoch, expert.version, call.known_epoch))
        call.answer((expert.epoch, expert.version))

    def happens(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate
