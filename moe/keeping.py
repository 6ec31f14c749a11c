"""What a node does so that experts outlive their hosts: the shell of `protocols.experts.placement`.

Snapshots of hosted experts go to keepers; an orphan is adopted from the newest that its last host signed; a node that leaves
hands its experts over first. Bytes move through the service `state`, checked against the signed root.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

import trio
from torch import Tensor

from moe.disk import (
    ExpertDisk,
    Held,
    Writable,
    part_kept,
    part_name,
    part_of,
    sign,
    snapshot_name,
    tensors_of,
)
from moe.peer import ExpertPeer
from moe.replicating import ReplicaKeeper
from moe.server import Expert, build_expert
from protocols.core import DrainWanted, Tick
from protocols.errors import RemoteProtocolError
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
from protocols.experts.messages import (
    EXPERTS_SERVICE,
    Alive,
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
    decode_message_untrusted,
    encode_message,
    signed_bytes,
    uid_untrusted,
)
from protocols.experts.placement import Placement
from protocols.experts.replicas import Replicas
from protocols.experts.shelf import Shelf
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID, Grid
from protocols.experts.view import Claim
from protocols.frames import Limits, TensorSpec
from protocols.ids import PeerID
from protocols.replies import ErrorCode
from protocols.run import OptimizerSpec
from swarm.calls import (
    CALL_FAILURES,
    Answer,
    Caller,
    CallError,
    Incoming,
    Refusal,
)
from swarm.driver import Driver
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread
from swarm.mode import RunContext
from swarm.resources import Resources
from swarm.state.initial import StartMisfitError
from swarm.state.part import Part
from swarm.state.snapshot import Snapshot, expected_specs
from swarm.state.transfer import Fetch, FetchedState, FetchError

log = logging.getLogger(__name__)

_CONTROL: Final = Limits(header_bytes_max=16 * 1024, body_bytes_max=0, tensors_max=0)
_ASK_S: Final = 5.0
_PROBE_S: Final = 3.0
_PROBES: Final = 2
_KEEP_S: Final = 30.0
"""A keeper has fetched the snapshot by then, a successor has fetched and built the expert."""


@dataclass(slots=True)
class _Offered:
    """An expert that another node wants us to take, until that is decided."""

    over: trio.Event
    epoch: int = 0
    """In which we host it then; 0: it is not taken."""


async def _no_state(uid: ExpertUID) -> None:
    """Experts of a run that begins from nothing."""


class ExpertKeeper:
    """One node's experts, from the first to the last.

    Args:
      peer: where they are hosted and announced.
      make: builds an expert with its initial weights; called on the compute thread.
      row: shape of one row of an expert's input.
      room: experts that this node is willing to host.
      left: called when nothing is held here any more.
      initial: returns what an expert begins from; None: its initial weights. May raise StartMisfitError.
    """

    def __init__(
        self,
        context: RunContext,
        resources: Resources,
        peer: ExpertPeer,
        *,
        spec: MoeSpec,
        grids: Sequence[Grid],
        make: Callable[[ExpertUID], Any],
        optimizer: OptimizerSpec,
        row: Sequence[int],
        room: int,
        left: Callable[[], None],
        initial: Callable[[ExpertUID], Awaitable[Mapping[str, Tensor] | None]] = _no_state,
    ) -> None:
        self._context = context
        self._caller: Caller = resources.caller
        self._compute: ComputeThread = resources.compute
        self._codec: ComputeThread = resources.codec
        self._peer = peer
        self._grids = grids
        self._uids = tuple(uid for grid in grids for uid in grid.uids())
        self._known = frozenset(self._uids)
        self._make = make
        self._optimizer = optimizer
        self._row = row
        self._left = left
        self._initial = initial
        self.core = Placement(
            context.me,
            self._uids,
            room,
            spec.keepers,
            spec.snapshot_every_s,
            context.rng,
            nodes_to_start=spec.nodes_to_start,
        )
        self._driver: Driver[Event] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self._own: dict[ExpertUID, Held] = {}
        """The newest snapshots of what we host."""
        self._shelf = Shelf()
        self._kept: dict[ExpertUID, Snapshot] = {}
        """Of what others host, or hosted: what the shelf says."""
        self._handing: dict[ExpertUID, _Offered] = {}
        self._disk = ExpertDisk(context, resources.codec, self._known)
        self.replicas = ReplicaKeeper(
            Replicas(context.me, spec.replicas, spec.popular, spec.replicas_average_s),
            self,
            peer,
            caller=resources.caller,
            compute=resources.compute,
        )
        self.expected: dict[str, TensorSpec] = {}
        """Tensors of an expert's state; known once `run` has begun."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        self.expected = await self._compute.run_own(self._template)
        restored = await self._disk.restore(self.expected)
        for uid, held in restored.held.items():
            self._shelve(uid, held)
        self.core.restore(trio.current_time(), restored.seen, self._shelf.offers)
        if restored.held:
            own = sum(held.offer.host == self._context.me for held in restored.held.values())
            log.info(
                "back with experts on disk: own=%d of_others=%d", own, len(restored.held) - own
            )
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._disk.run, self._writable, self.core)
            for effect in self.core.start(trio.current_time()):
                self._perform(effect)
            await nursery.start(self.replicas.run)
            task_status.started()
            await self._driver.run()

    def wire(self) -> Mapping[str, Endpoint]:
        return {EXPERTS_SERVICE: Endpoint(self.answer, lambda peer: _CONTROL)}

    # --- what the mode tells ---

    def nodes_seen(self, rooms: Mapping[PeerID, int]) -> None:
        """These nodes are in the run, with room for so many experts each."""
        self._driver.feed(NodesSeen(trio.current_time(), rooms))

    def looked(self) -> None:
        """The directory has been read."""
        view, now_s = self._peer.view, trio.current_time()
        if not view.complete(self._grids):
            return
        claims = {}
        for uid in self._uids:
            found = [claim for claim in view.claims(uid, now_s) if claim.peer != self._context.me]
            if found:
                claims[uid] = found
        self._driver.feed(ClaimsSeen(now_s, claims))
        self.replicas.rightful_seen(claims)

    def suspect(self, peer: PeerID) -> None:
        """A call to this host could not reach it."""
        if peer != self._context.me:
            self._driver.feed(Suspected(trio.current_time(), peer))

    def newer(self, uid: ExpertUID, epoch: int) -> None:
        """A caller knows a newer epoch than ours."""
        if uid in self.replicas.core.serving:
            self._peer.search.look_again(uid)
        self._driver.feed(NewerEpoch(trio.current_time(), uid, epoch))

    def drain(self) -> None:
        """Hand everything over; `left` is called then."""
        self.replicas.drain()
        self._driver.feed(DrainWanted(trio.current_time()))

    # --- what others fetch ---

    def find_part(self, name: str) -> Part | None:
        """Return a hosted expert's state as it is now, for an export."""
        hosted = self._peer.server.hosted
        return next((part_of(of) for of in hosted if part_name(of.uid) == name), None)

    def find_kept(self, name: str, version: int) -> Snapshot | None:
        """Return a snapshot that we made or keep."""
        for snapshot in self._snapshots():
            if (snapshot.manifest.part, snapshot.manifest.version) == (name, version):
                return snapshot
        return None

    def _snapshots(self) -> Iterator[Snapshot]:
        yield from (held.snapshot for held in self._own.values())
        yield from self._kept.values()

    def _writable(self) -> Writable:
        """Return what is to be on disk: what we host, and what we keep for others."""
        kept = {
            uid: (
                part_kept(uid, Held(self._shelf.offers[uid], snapshot), self.expected),
                self._codec,
            )
            for uid, snapshot in self._kept.items()
        }
        return kept | {of.uid: (part_of(of), self._compute) for of in self._peer.server.hosted}

    @property
    def kept(self) -> Mapping[ExpertUID, SnapshotOffer]:
        """What we keep for others."""
        return self._shelf.offers

    @property
    def bytes_kept(self) -> int:
        return sum(snapshot.data.nbytes for snapshot in self._snapshots())

    # --- events and effects ---

    def _tick(self, now_s: float) -> None:
        if now_s >= self.core.wake_at_s:
            self._driver.feed(Tick(now_s))

    def _dispatch(self, event: Event) -> None:
        before = self.core.to_take_back
        for effect in self.core.handle(event):
            self._perform(effect)
        if before and not self.core.to_take_back:
            log.info("own experts are back: taken_back=%d", self.core.taken_back)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Create(uid, epoch, lost):
                if lost:
                    log.error("expert lost, it begins anew: expert=%s", uid)
                self._start(self._create, uid, epoch)
            case FindSnapshots(uid, nodes):
                self._start(self._find_snapshots, uid, nodes)
            case Adopt(uid, epoch, offer, donors):
                self._start(self._adopt, uid, epoch, offer, donors)
            case AnswerHandOver(uid):
                self._answer_hand_over(uid, epoch=0)
            case Drop(uid, reason):
                log.info("expert dropped: expert=%s reason=%s", uid, reason)
                expert = self._peer.server.experts.get(uid)
                self._peer.server.remove(uid)
                held = self._own.pop(uid, None)
                if held is not None and reason == "superseded":
                    self._shelve(uid, held)
                if expert is not None and reason == "superseded" and expert.stats.steps:
                    self._start(self._shelve_last, expert)
            case TakeSnapshot(uid, epoch, keepers):
                self._start(self._take_snapshot, uid, epoch, keepers)
            case HandOverTo(uid, epoch, peer):
                self._start(self._hand_over, uid, epoch, peer)
            case ProbePeer(peer):
                self._start(self._probe, peer)
            case LookAgain(uid):
                self._peer.search.look_again(uid)
            case Doubt(peer):
                log.info("host is down: peer=%s", peer)
                self._peer.view.doubt(peer)
                self.looked()
            case Announce():
                self.announce()
            case Left():
                self._start(self._leave)
            case _:
                assert_never(effect)

    def _shelve(self, uid: ExpertUID, held: Held) -> None:
        if self._shelf.put_own(uid, held.offer):
            self._kept[uid] = held.snapshot

    async def _shelve_last(self, expert: Expert) -> None:
        """Keep what an expert has learned since its last snapshot: the better claim may be a liar's, who has no state."""
        self._shelve(expert.uid, await self._signed_state(expert))

    def _start(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(fn, *args)

    # --- hosting ---

    def standing(self) -> tuple[Mapping[ExpertUID, int], Mapping[PeerID, int], int]:
        """See moe.replicating.Copies."""
        return self.core.hosting, self.core.spare(), self.core.free

    def announce(self) -> None:
        """State what we host, and its replicas."""
        hosted = self.core.hosting
        named = {uid: peers for uid, peers in self.replicas.named.items() if uid in hosted}
        self._peer.view.own(self._context.me, hosted, named)
        self._peer.announcer.announce(hosted, named)

    async def _host(self, uid: ExpertUID, epoch: int, state: Mapping[str, Tensor] | None) -> None:
        """Build an expert, answer for it, and tell the core."""
        expert = await self._compute.run_own(self.build, uid, epoch, state)
        self.replicas.hosted(uid)
        self._peer.server.put(expert)
        log.info("expert hosted: expert=%s epoch=%d version=%d", uid, epoch, expert.hosted.version)
        self._driver.feed(Hosted(trio.current_time(), uid, epoch))
        self._answer_hand_over(uid, epoch=epoch if uid in self._peer.server.experts else 0)

    async def _create(self, uid: ExpertUID, epoch: int) -> None:
        """Begin an expert: with its initial weights, or with what the run begins from."""
        try:
            state = await self._initial(uid)
        except StartMisfitError as error:
            log.error("expert not begun: expert=%s reason=%s", uid, error)
            self._driver.feed(HostFailed(trio.current_time(), uid))
            return
        await self._host(uid, epoch, state)

    def build(self, uid: ExpertUID, epoch: int, state: Mapping[str, Tensor] | None) -> Expert:
        """Build an expert. On the compute thread."""
        expert = build_expert(uid, self._make(uid), self._optimizer, row=self._row, epoch=epoch)
        if state is not None:
            expert.hosted.load(state)
        return expert

    def _template(self) -> dict[str, TensorSpec]:
        """Describe an expert's state; all of a run have the same shapes."""
        expert = self.build(self._uids[0], 1, None)
        return expected_specs(expert.hosted.snapshot())

    async def _adopt(
        self, uid: ExpertUID, epoch: int, offer: SnapshotOffer, donors: Sequence[PeerID]
    ) -> None:
        try:
            state = await self._state_of(uid, offer, donors)
        except (FetchError, RemoteProtocolError) as error:
            log.warning("expert not adopted: expert=%s reason=%s", uid, error)
            self._driver.feed(HostFailed(trio.current_time(), uid))
            self._answer_hand_over(uid, epoch=0)
            return
        await self._host(uid, epoch, state)

    async def _state_of(
        self, uid: ExpertUID, offer: SnapshotOffer, donors: Sequence[PeerID]
    ) -> Mapping[str, Tensor]:
        """Return the state that a host signed for: our own copy, or one fetched. Raises FetchError, RemoteProtocolError."""
        kept = self._shelf.offers.get(uid)
        if kept is not None and kept.root == offer.root:
            return await self._codec.run_own(tensors_of, self._kept[uid], self.expected)
        problem: Exception = FetchError("there is no donor")
        for donor in donors:
            if donor != self._context.me:
                try:
                    return (await self.fetched(uid, offer, [donor])).tensors
                except (FetchError, RemoteProtocolError) as error:
                    problem = error
        raise problem

    async def fetched(
        self, uid: ExpertUID, offer: SnapshotOffer, donors: Sequence[PeerID]
    ) -> FetchedState:
        """Fetch a snapshot. Raises FetchError, RemoteProtocolError."""
        name = snapshot_name(uid, offer.epoch)
        fetch = Fetch(self._caller, self._codec, self.expected, part=name, version=offer.version)
        state = await fetch.run(donors)
        if state.root != offer.root:
            # Nobody's fault that could be told: who signed may have signed for something else.
            raise FetchError("it is another state than the one that a host signed for")
        return state

    # --- snapshots ---

    async def _snapshot(self, uid: ExpertUID) -> Held | None:
        """Return the newest state of a hosted expert, signed; made anew when the expert has stepped since the last."""
        expert = self._peer.server.experts.get(uid)
        if expert is None or expert.replica:
            return None
        held = self._own.get(uid)
        if held is not None and held.offer.age == (expert.epoch, expert.hosted.version):
            return held
        held = await self._signed_state(expert)
        if uid in self._peer.server.experts:
            self._own[uid] = held
        return held

    async def _signed_state(self, expert: Expert) -> Held:
        """Take a snapshot, and sign it."""
        uid = expert.uid
        version, tensors = await self._compute.run_own(part_of(expert).snapshot)
        snapshot = await self._codec.run_own(
            functools.partial(
                Snapshot.of, tensors, part=snapshot_name(uid, expert.epoch), version=version
            )
        )
        context = self._context
        offer = sign(context.signer, context.run.run_id, uid, expert.epoch, snapshot)
        return Held(offer, snapshot)

    async def signed_snapshot(self, uid: ExpertUID) -> SnapshotOffer | None:
        """See moe.replicating.Copies."""
        held = await self._snapshot(uid)
        return held.offer if held is not None else None

    async def _take_snapshot(self, uid: ExpertUID, epoch: int, keepers: Sequence[PeerID]) -> None:
        held = await self._snapshot(uid)
        if held is None or held.offer.epoch != epoch:
            return
        count, leaving = 0, list[PeerID]()
        for keeper in keepers:
            answer = await self.ask(keeper, Keep(held.offer), deadline_s=_KEEP_S)
            if isinstance(answer, Kept) and answer.kept:
                count += 1
                continue
            log.debug("snapshot not kept: expert=%s peer=%s", uid, keeper)
            if answer == "draining":
                leaving.append(keeper)
        self._driver.feed(SnapshotKept(trio.current_time(), uid, count, tuple(leaving)))

    async def _find_snapshots(self, uid: ExpertUID, nodes: Sequence[PeerID]) -> None:
        """Ask everybody at once what they keep; what is not signed by its host does not count."""
        offers: list[tuple[PeerID, SnapshotOffer]] = []
        silent: list[PeerID] = []
        seen: list[tuple[PeerID, Seen]] = []

        async def ask(node: PeerID) -> None:
            answer = await self.ask(node, SnapshotWanted(str(uid)), deadline_s=_ASK_S)
            if answer is None or isinstance(answer, str):
                silent.append(node)
            elif isinstance(answer, Snapshots):
                seen.extend((node, host) for host in answer.hosts)
                if answer.offer is None:
                    return
                if answer.offer.uid == str(uid) and self._signed(answer.offer):
                    offers.append((node, answer.offer))
                else:
                    problem = RemoteProtocolError("offered a snapshot that its host did not sign")
                    self._context.guard.fault(node, problem)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(ask, node)
        if uid in self._shelf.offers:
            offers.append((self._context.me, self._shelf.offers[uid]))
        now_s = trio.current_time()
        self._driver.feed(OffersFound(now_s, uid, tuple(offers), tuple(silent), tuple(seen)))

    def _signed(self, offer: SnapshotOffer) -> bool:
        signed = signed_bytes(self._context.run.run_id, offer)
        return self._context.verify(offer.host, signed, offer.signature)

    # --- leaving ---

    async def _leave(self) -> None:
        await self.replicas.told()
        await self._disk.write_hosts(self.core)  # who has our experts now
        self._left()

    async def _hand_over(self, uid: ExpertUID, epoch: int, peer: PeerID) -> None:
        expert = self._peer.server.experts.get(uid)
        if expert is None or expert.replica:
            self._driver.feed(HandedOver(trio.current_time(), uid, epoch, taken=False))
            return
        expert.frozen = True
        held = await self._snapshot(uid)
        taken = False
        if held is not None:
            answer = await self.ask(peer, HandOver(held.offer), deadline_s=_KEEP_S)
            taken = isinstance(answer, Taken) and answer.taken
        log.info("expert handed over: expert=%s peer=%s taken=%s", uid, peer, taken)
        expert.frozen = False
        successor = answer.epoch if taken and isinstance(answer, Taken) else 0
        self._driver.feed(HandedOver(trio.current_time(), uid, epoch, taken, successor))

    async def _probe(self, peer: PeerID) -> None:
        alive = False
        for _ in range(_PROBES):
            answer = await self.ask(peer, Probe(), deadline_s=_PROBE_S)
            # Who is too busy to answer, or leaves, is there.
            alive = isinstance(answer, Alive) or answer in ("busy", "draining")
            if alive:
                break
        self._driver.feed(Probed(trio.current_time(), peer, alive))

    async def ask(
        self, peer: PeerID, message: Message, *, deadline_s: float
    ) -> Message | ErrorCode | None:
        """Return the answer, the code of a refusal, or None when there is neither."""
        try:
            answer = await self._caller.call(
                peer, EXPERTS_SERVICE, encode_message(message), deadline_s=deadline_s
            )
            with self._caller.guard.blaming(peer):
                return decode_message_untrusted(answer.message)
        except CallError as error:
            log.debug("refused: peer=%s code=%s", peer, error.code)
            return error.code
        except CALL_FAILURES:
            if not isinstance(message, Probe):
                self.suspect(peer)
        return None

    # --- what others ask ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the service `experts`. Raises Refusal, RemoteProtocolError."""
        message = decode_message_untrusted(incoming.message)
        match message:
            case Probe():
                return Answer(encode_message(Alive()))
            case SnapshotWanted():
                uid = uid_untrusted(message.uid)
                snapshots = Snapshots(self._newest(uid), tuple(self.core.seen(uid)))
                return Answer(encode_message(snapshots))
            case Keep(offer):
                return Answer(encode_message(Kept(await self._keep(incoming.peer, offer))))
            case ReplicaWanted(offer):
                uid = self._offer_untrusted(incoming.peer, offer)
                taken = await self.replicas.offered(incoming.peer, uid, offer)
                return Answer(encode_message(Taken(taken)))
            case ReplicaOver():
                self.replicas.released(incoming.peer, message)
                return Answer(encode_message(Alive()))
            case HandOver(offer):
                epoch = await self._take_over(incoming.peer, offer)
                return Answer(encode_message(Taken(epoch > 0, epoch)))
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} asks for nothing here")

    def _newest(self, uid: ExpertUID) -> SnapshotOffer | None:
        """Return the newest snapshot that is here. Who asks a host for one takes it for dead."""
        own = self._own.get(uid)
        return own.offer if own is not None else self._shelf.offers.get(uid)

    def _offer_untrusted(self, peer: PeerID, offer: SnapshotOffer) -> ExpertUID:
        """Check what a host says of its own expert. Raises Refusal, RemoteProtocolError."""
        uid = uid_untrusted(offer.uid)
        if uid not in self._known:
            raise RemoteProtocolError("that expert is not one of this run's")
        if offer.host != peer or not self._signed(offer):
            raise RemoteProtocolError("an expert is offered by its host, with its signature")
        return uid

    async def _keep(self, peer: PeerID, offer: SnapshotOffer) -> bool:
        """Fetch a snapshot and keep it, in place of an older one. Raises Refusal, RemoteProtocolError."""
        uid = self._offer_untrusted(peer, offer)
        if self.core.draining:
            raise Refusal("draining", "this node is leaving, and what it keeps with it")
        hosts = self._hosts(uid)
        verdict = self._shelf.judge(uid, offer, hosts)
        if verdict == "overtaken":
            for claim in hosts[:1]:  # it may be dead, and the directory not know it yet
                self.suspect(claim.peer)
            raise Refusal("overtaken", "the directory does not name you as that expert's host")
        if verdict != "fetch":
            return verdict == "kept"
        try:
            state = await self.fetched(uid, offer, [peer])
        except (FetchError, RemoteProtocolError) as error:
            log.info("snapshot not fetched: expert=%s reason=%s", uid, error)
            return False
        snapshot = await self._codec.run_own(
            functools.partial(
                Snapshot.of,
                state.tensors,
                part=snapshot_name(uid, offer.epoch),
                version=offer.version,
            )
        )
        if snapshot.manifest.root != offer.root:  # cut in chunks of another size than ours
            return False
        if not self._shelf.put(uid, offer, self._hosts(uid)):
            return False
        self._kept[uid] = snapshot
        return True

    def _hosts(self, uid: ExpertUID) -> Sequence[Claim]:
        return self._peer.view.hosts(uid, trio.current_time())

    async def _take_over(self, peer: PeerID, offer: SnapshotOffer) -> int:
        """Return the epoch in which we host it now; 0: we do not. Raises Refusal, RemoteProtocolError."""
        uid = self._offer_untrusted(peer, offer)
        if uid in self._handing:
            raise Refusal("busy", "that expert is being taken over", 1.0)
        offered = self._handing[uid] = _Offered(trio.Event())
        self._driver.feed(HandOverOffered(trio.current_time(), peer, offer, uid))
        await offered.over.wait()
        return offered.epoch

    def _answer_hand_over(self, uid: ExpertUID, *, epoch: int) -> None:
        offered = self._handing.pop(uid, None)
        if offered is not None:
            offered.epoch = epoch
            offered.over.set()
