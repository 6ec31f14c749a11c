"""Replicas: the shell of `protocols.experts.replicas`. Popular and thin experts are answered for by other nodes as well.

A replica begins from a snapshot that its host signed, as an adopter does. It answers the same calls in the host's epoch, steps
by itself, and sends its parameters to the host every few seconds; the host blends them into its own and sends the outcome back.
The optimizers' moments stay each one's own.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, assert_never

import torch
import trio
from torch import Tensor

from moe.peer import ExpertPeer
from moe.server import Expert
from protocols.core import DrainWanted
from protocols.errors import RemoteProtocolError
from protocols.experts.dispatch import NORM_FACTOR
from protocols.experts.messages import (
    EXPERT_SERVICE,
    Average,
    Averaged,
    Message,
    ReplicaOver,
    ReplicaWanted,
    SnapshotOffer,
    Taken,
    decode_message_untrusted,
    encode_message,
    uid_untrusted,
)
from protocols.experts.replicas import (
    Appoint,
    Appointed,
    AverageAsked,
    AverageOver,
    AverageWith,
    Effect,
    Event,
    Measured,
    Name,
    Offered,
    RefuseReplica,
    Release,
    Released,
    Replicas,
    Replicate,
    Replicated,
    RightfulSeen,
    StopServing,
)
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.replies import ErrorCode
from swarm.calls import CALL_FAILURES, Answer, Caller, CallError, Incoming, Refusal, WireTensor
from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import NonFiniteError
from swarm.state.transfer import FetchedState, FetchError
from swarm.tensors.wire import from_wire, to_wire

log = logging.getLogger(__name__)

MEASURED_EVERY_S: Final = 1.0
_SMOOTHED: Final = 0.2
"""Weight of the latest second in an expert's share of the time."""
_REPLICA_S: Final = 30.0
"""A replica has fetched and built the expert by then."""
_AVERAGE_S: Final = 30.0
_RELEASE_S: Final = 3.0


class Copies(Protocol):
    """What is needed of the node's keeper."""

    async def signed_snapshot(self, uid: ExpertUID) -> SnapshotOffer | None:
        """Return the newest state of an expert that we host, signed, and ready to be fetched."""
        ...

    async def fetched(
        self, uid: ExpertUID, offer: SnapshotOffer, donors: Sequence[PeerID]
    ) -> FetchedState:
        """Fetch a snapshot. Raises FetchError, RemoteProtocolError."""
        ...

    def build(self, uid: ExpertUID, epoch: int, state: Mapping[str, Tensor] | None) -> Expert:
        """Build an expert. On the compute thread."""
        ...

    async def ask(
        self, peer: PeerID, message: Message, *, deadline_s: float
    ) -> Message | ErrorCode | None:
        """Ask the service `experts`. Return the answer, the code of a refusal, or None when there is neither."""
        ...

    def standing(self) -> tuple[Mapping[ExpertUID, int], Mapping[PeerID, int], int]:
        """Return what we host with epochs, how much more each other node has room for, and how much more we have."""
        ...

    def announce(self) -> None:
        """State anew what we host, and its replicas."""
        ...


class ReplicaKeeper:
    """One node's replicas, those of its experts and those that it is.

    Args:
      core: decides.
      copies: of the node's experts.
    """

    def __init__(
        self,
        core: Replicas,
        copies: Copies,
        peer: ExpertPeer,
        *,
        caller: Caller,
        compute: ComputeThread,
    ) -> None:
        self.core = core
        self._copies = copies
        self._peer = peer
        self._caller = caller
        self._compute = compute
        self.named: Mapping[ExpertUID, tuple[PeerID, ...]] = {}
        """Who answers for our experts as well."""
        self._shares: dict[ExpertUID, float] = {}
        self._seconds: dict[ExpertUID, float] = {}
        self._rows: dict[tuple[ExpertUID, int, PeerID], int] = {}
        """Rows that an expert here had trained on when it was last averaged with this peer."""
        self._offers: dict[ExpertUID, tuple[trio.Event, list[bool]]] = {}
        self._releases: set[trio.Event] = set()
        self._nursery: trio.Nursery | None = None
        peer.server.averaging = self.answer_average

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            measured_s = trio.current_time()
            while True:
                await trio.sleep(MEASURED_EVERY_S)
                now_s = trio.current_time()
                own, spare, free = self._copies.standing()
                shares = self._measure(own, now_s - measured_s)
                measured_s = now_s
                self.feed(Measured(now_s, own, shares, spare, free))

    def rightful_seen(self, claims: Mapping[ExpertUID, Sequence[Claim]]) -> None:
        """The directory has been read."""
        self.feed(RightfulSeen(trio.current_time(), claims))

    def hosted(self, uid: ExpertUID) -> None:
        """We host it ourselves from now on."""
        self.core.forget(uid)

    def drain(self) -> None:
        """Be nobody's replica, and have none."""
        self.feed(DrainWanted(trio.current_time()))

    def feed(self, event: Event) -> None:
        """Let the core take an event, and do what it says."""
        for effect in self.core.handle(event):
            self._perform(effect)

    def _measure(self, own: Mapping[ExpertUID, int], passed_s: float) -> Mapping[ExpertUID, float]:
        for uid in self._shares.keys() - own.keys():
            del self._shares[uid], self._seconds[uid]
        for uid in own:
            expert = self._peer.server.experts.get(uid)
            seconds = expert.stats.seconds if expert is not None else 0.0
            lately = max(0.0, seconds - self._seconds.get(uid, seconds)) / max(passed_s, 1e-9)
            before = self._shares.get(uid, 0.0)
            self._shares[uid] = before + _SMOOTHED * (lately - before)
            self._seconds[uid] = seconds
        return dict(self._shares)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Appoint():
                self._start(self._appoint, effect)
            case Name(replicas):
                self.named = replicas
                self._copies.announce()
            case Replicate(uid, offer):
                self._start(self._replicate, uid, offer)
            case RefuseReplica(uid):
                self._answer_offer(uid, taken=False)
            case AverageWith(uid, epoch, host):
                self._start(self._average, uid, epoch, host)
            case StopServing(uid, epoch):
                expert = self._peer.server.experts.get(uid)
                if expert is not None and expert.replica and expert.epoch == epoch:
                    log.info("no replica any more: expert=%s", uid)
                    self._peer.server.remove(uid)
            case Release(uid, epoch, peer):
                self._start(self._release, uid, epoch, peer)
            case _:
                assert_never(effect)

    def _start(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(fn, *args)

    async def _release(self, uid: ExpertUID, epoch: int, peer: PeerID) -> None:
        over = trio.Event()
        self._releases.add(over)
        try:
            await self._copies.ask(peer, ReplicaOver(str(uid), epoch), deadline_s=_RELEASE_S)
        finally:
            self._releases.discard(over)
            over.set()

    async def told(self) -> None:
        """Wait until everybody has been told, or does not answer."""
        await trio.lowlevel.checkpoint()  # what was begun just now counts
        for over in tuple(self._releases):
            await over.wait()

    def released(self, peer: PeerID, message: ReplicaOver) -> None:
        """Answer a host that lets us go, or a replica that stops. Raises RemoteProtocolError."""
        self.feed(Released(peer, uid_untrusted(message.uid), message.epoch))

    # --- as a host ---

    async def _appoint(self, appoint: Appoint) -> None:
        uid, peer = appoint.uid, appoint.peer
        offer = await self._copies.signed_snapshot(uid)
        taken = False
        if offer is not None and offer.epoch == appoint.epoch:
            expert = self._peer.server.experts.get(uid)
            rows = expert.stats.backward_rows if expert is not None else 0
            self._rows[uid, appoint.epoch, peer] = rows
            answer = await self._copies.ask(peer, ReplicaWanted(offer), deadline_s=_REPLICA_S)
            taken = isinstance(answer, Taken) and answer.taken
        log.info("replica appointed: expert=%s peer=%s taken=%s", uid, peer, taken)
        self.feed(Appointed(trio.current_time(), appoint, taken))

    async def answer_average(self, incoming: Incoming, message: Average) -> Answer:
        """Blend a replica's parameters into ours, and answer with the outcome. Raises Refusal, RemoteProtocolError."""
        uid, epoch = uid_untrusted(message.uid), message.epoch
        expert = self._peer.server.experts.get(uid)
        ours = expert is not None and not expert.replica and expert.epoch == epoch
        if expert is None or not ours or not self.core.is_replica(uid, epoch, incoming.peer):
            raise Refusal("not-here", "this node has no such replica of an expert of its own")
        if expert.frozen:
            raise Refusal("draining", "this expert is being handed over", 1.0)
        if not self.core.admits(uid, incoming.peer, trio.current_time()):
            raise Refusal("busy", "averaged a moment ago", self.core.average_s)
        theirs = _flat_untrusted(incoming.tensors, expert)
        try:
            mean = await self._compute.run_own(
                self._blend, expert, theirs, message.rows, (uid, epoch, incoming.peer)
            )
        except NonFiniteError as error:
            raise RemoteProtocolError("a replica's parameters are not finite") from error
        self.feed(AverageAsked(trio.current_time(), uid, incoming.peer))
        return Answer(encode_message(Averaged(epoch)), [to_wire(mean)])

    def _blend(
        self, expert: Expert, theirs: Tensor, rows: int, key: tuple[ExpertUID, int, PeerID]
    ) -> Tensor:
        """On the compute thread. A replica's word on its rows never makes it count for more than we do."""
        own_rows = expert.stats.backward_rows - self._rows.get(key, 0)
        self._rows[key] = expert.stats.backward_rows
        share = min(0.5, rows / (rows + own_rows)) if rows else 0.0
        flat = expert.hosted.flat.detach()
        if not torch.linalg.vector_norm(theirs) <= NORM_FACTOR * torch.linalg.vector_norm(flat):
            raise RemoteProtocolError("a replica's parameters are not finite, or far too large")
        return expert.hosted.blend(theirs, share=share) if share else flat.clone()

    # --- as a replica ---

    async def offered(self, peer: PeerID, uid: ExpertUID, offer: SnapshotOffer) -> bool:
        """Answer a host that wants us as its replica. Raises Refusal."""
        if uid in self._offers:
            raise Refusal("busy", "this node is becoming a replica of that expert", 1.0)
        over, taken = self._offers[uid] = trio.Event(), [False]
        self.feed(Offered(trio.current_time(), peer, uid, offer))
        await over.wait()
        return taken[0]

    def _answer_offer(self, uid: ExpertUID, *, taken: bool) -> None:
        if (offered := self._offers.pop(uid, None)) is not None:
            over, answer = offered
            answer[0] = taken
            over.set()

    async def _replicate(self, uid: ExpertUID, offer: SnapshotOffer) -> None:
        done = False
        try:
            state = await self._copies.fetched(uid, offer, [offer.host])
        except (FetchError, RemoteProtocolError) as error:
            log.info("no replica: expert=%s reason=%s", uid, error)
        else:
            build = self._copies.build
            expert = await self._compute.run_own(build, uid, offer.epoch, state.tensors)
            if uid not in self._peer.server.experts:  # else we host it ourselves meanwhile
                expert.replica = True
                self._rows[uid, offer.epoch, offer.host] = 0
                self._peer.server.put(expert)
                log.info("replica: expert=%s host=%s", uid, offer.host)
                done = True
        self.feed(Replicated(trio.current_time(), uid, done))
        self._answer_offer(uid, taken=done and uid in self._peer.server.experts)

    async def _average(self, uid: ExpertUID, epoch: int, host: PeerID) -> None:
        heard = False
        try:
            heard = await self._averaged(uid, epoch, host)
        except CallError as error:
            log.debug("not averaged: expert=%s peer=%s code=%s", uid, host, error.code)
            if error.code == "not-here":
                self.feed(Released(host, uid, epoch))
        except (*CALL_FAILURES, NonFiniteError) as error:
            log.debug("not averaged: expert=%s peer=%s reason=%s", uid, host, error)
        self.feed(AverageOver(trio.current_time(), uid, epoch, heard))

    async def _averaged(self, uid: ExpertUID, epoch: int, host: PeerID) -> bool:
        expert = self._peer.server.experts.get(uid)
        if expert is None or not expert.replica or expert.epoch != epoch:
            return False
        key = uid, epoch, host
        sent, total = await self._compute.run_own(_flat_and_rows, expert)
        answer = await self._caller.call(
            host,
            EXPERT_SERVICE,
            encode_message(Average(str(uid), epoch, total - self._rows.get(key, 0))),
            [to_wire(sent)],
            deadline_s=_AVERAGE_S,
        )
        with self._caller.guard.blaming(host):
            if not isinstance(decode_message_untrusted(answer.message), Averaged):
                raise RemoteProtocolError("an averaging is answered with Averaged")
            mean = _flat_untrusted(answer.tensors, expert)
        # What it has learned meanwhile is kept.
        await self._compute.run_own(expert.hosted.move, mean - sent)
        self._rows[key] = total
        return True


def _flat_and_rows(expert: Expert) -> tuple[Tensor, int]:
    return expert.hosted.flat.detach().clone(), expert.stats.backward_rows


def _flat_untrusted(wires: Sequence[WireTensor], expert: Expert) -> Tensor:
    """Return an expert's parameters (n,) as a peer sent them. Raises RemoteProtocolError."""
    spec = TensorSpec(expert.dtype, (expert.hosted.flat.numel(),))
    if len(wires) != 1 or wires[0].spec != spec or wires[0].data.nbytes != spec.byte_count:
        raise RemoteProtocolError(f"an expert's parameters are one vector of {spec.shape[0]}")
    return from_wire(wires[0])
