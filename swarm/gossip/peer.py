"""One gossip peer on the wire: feeds the core, and does what it decides. Nothing here decides.

neighbours' pushes --> codec thread (moments) --> Gossip --effects--> compute thread (batches, averages)
                                                         --effects--> pushes to neighbours
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, assert_never

import trio
from torch import Tensor

from protocols.core import Blame, ContactsFound, DrainWanted, Received, Send, Tick
from protocols.errors import RemoteProtocolError
from protocols.frames import Limits, TensorSpec
from protocols.gossip.events import (
    AdoptModel,
    AnswerPush,
    AskOffer,
    Averaged,
    AverageModels,
    DropModel,
    FetchModel,
    GossipEffect,
    GossipEvent,
    Left,
    LookForContacts,
    ModelArrived,
    ModelFailed,
    ModelFetched,
    OfferAnswered,
    OfferFailed,
    PushAnswered,
    PushFailed,
    PushModel,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.gossip import Gossip
from protocols.gossip.messages import (
    Leaving,
    ModelOffer,
    OfferWanted,
    Push,
    PushAnswer,
    decode_message_untrusted,
    encode_message,
    signed_bytes,
)
from protocols.ids import PeerID
from protocols.state_calls import STATE_SERVICE
from swarm.calls import (
    CALL_FAILURES,
    Answer,
    CallError,
    Incoming,
    Refusal,
    WireTensor,
)
from swarm.driver import Driver
from swarm.endpoints import Endpoint
from swarm.gossip.arithmetic import Averaging
from swarm.gossip.info import MODEL
from swarm.gossip.models import Models
from swarm.gossip.models import Received as ReceivedModel
from swarm.learner.learner import TrainedBatch
from swarm.learner.task import Evaluation
from swarm.mode import RunContext
from swarm.resources import Resources
from swarm.state.snapshot import Snapshot, expected_specs
from swarm.state.transfer import Fetch, FetchError, Snapshots
from swarm.tensors.wire import from_wire, to_wire

log = logging.getLogger(__name__)

GOSSIP_SERVICE: Final = "gossip"
_HEADER_BYTES: Final = 64 * 1024
_OFFER_S: Final = 10.0
_FIRST_PUSH_S: Final = 20.0
"""For the first push to a peer; afterwards it follows what its pushes took."""


@dataclass(slots=True)
class GossipHooks:
    """What the mode around a peer wants to hear of. Called on the event loop; must not wait, where it says nothing else."""

    trained: Callable[[TrainedBatch, Evaluation | None], None]
    evaluated: Callable[[Evaluation], None]
    averaged: Callable[[Averaging], None]
    rolled_back: Callable[[], None]
    stepped: Callable[[], Awaitable[None]]
    """A batch is trained. May wait, for the compute thread only."""
    look: Callable[[], None]
    left: Callable[[], None]


class GossipPeer:
    """The shell of `protocols.gossip.gossip`.

    Args:
      epoch, joins, averages: see `Gossip`.
      run_batch: does one batch; None trains it on the compute thread.
    """

    def __init__(
        self,
        context: RunContext,
        resources: Resources,
        models: Models,
        *,
        epoch: int,
        founds: bool,
        joins: bool = False,
        averages: int = 0,
        hooks: GossipHooks,
        run_batch: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._context = context
        self._caller = resources.caller
        self._compute = resources.compute
        self._codec = resources.codec
        self._run_batch = run_batch or resources.compute.run_own
        self._models = models
        self._hooks = hooks
        run = context.run
        self._evaluate_every = run.training.evaluate_every
        self._deadlines = run.deadlines
        self.core = Gossip(
            context.me,
            models.spec,
            models.layout,
            seed=run.seed,
            epoch=epoch,
            rng=random.Random(context.rng.getrandbits(64)),
            steps=run.training.steps,
            founds=founds,
            trained=models.learner.trained,
            joins=joins,
            averages=averages,
        )
        self._driver: Driver[GossipEvent] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self._handles = itertools.count(1)
        self._answers: dict[int, trio.Event] = {}
        self._verdicts: dict[int, PushAnswer] = {}
        self._push_s: dict[PeerID, float] = {}
        """How long a push to this peer takes, about."""
        self.snapshots = Snapshots(lambda name: None, resources.compute, resources.codec)
        self._offered: Snapshot | None = None
        self._offered_of: tuple[int, int] | None = None
        self._nursery: trio.Nursery | None = None
        self._send_job, self._jobs = trio.open_memory_channel[Callable[[], Awaitable[None]]](2)
        """The core has one job done at a time, and a model adopted before it."""
        largest = max(part.elements for part in models.parts)
        body = largest * models.learner.flat.element_size()
        self.limits = Limits(header_bytes_max=_HEADER_BYTES, body_bytes_max=body, tensors_max=1)
        """Of a message to the service `gossip`.

        Whoever is in the run may send a body as large as a part: a neighbour may know of us before we know of it, and must
        not be blamed for that. What strangers can make us hold is bounded by the node's guard.
        """
        self.snapshots_taken = 0
        self.started_from: PeerID | None = None
        """The neighbour whose model ours began with."""

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._context.guard.counts_on = lambda who: who in self.core.neighbourhood.current
            nursery.start_soon(self._do_jobs)
            for effect in self.core.start(trio.current_time()):
                self._perform(effect)
            task_status.started()
            await self._driver.run()

    def wire(self) -> dict[str, Endpoint]:
        """Return the services `gossip` and `state`."""
        short = Limits(header_bytes_max=_HEADER_BYTES, body_bytes_max=0, tensors_max=0)
        return {
            GOSSIP_SERVICE: Endpoint(self.answer, lambda sender: self.limits),
            STATE_SERVICE: Endpoint(self.snapshots.answer, lambda sender: short),
        }

    def contacts_found(self, peers: tuple[PeerID, ...]) -> None:
        """These are in the run, by the directory."""
        self._driver.feed(ContactsFound(trio.current_time(), peers))

    def drain(self) -> None:
        """Tell the neighbours, finish what is on its way; `hooks.left` is called then."""
        self._driver.feed(DrainWanted(trio.current_time()))

    async def on_model(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Do something with the model between two batches."""
        return await self._compute.run_own(fn, *args)

    # --- events and effects ---

    def _tick(self, now_s: float) -> None:
        if now_s >= self.core.wake_at_s:
            self._driver.feed(Tick(now_s))

    def _dispatch(self, event: GossipEvent) -> None:
        for effect in self.core.handle(event):
            self._perform(effect)

    def _perform(self, effect: GossipEffect) -> None:
        match effect:
            case TrainBatch():
                self._do_next(self._train)
            case TakeSnapshot(sequence):
                self._do_next(self._take_snapshot, sequence)
            case AverageModels(part, models):
                received = [(peer, self._models.received.pop(handle)) for peer, handle in models]
                self._do_next(self._average, part, received)
            case RollBack():
                self._do_next(self._roll_back)
            case AdoptModel(handle, trained):
                adopted = self._models.received.pop(handle)
                self.started_from = adopted.peer
                self._do_next(self._adopt, adopted.vector, trained)
            case PushModel():
                self._start(
                    self._push,
                    effect,
                    self._models.open_part(effect.push.sequence, effect.push.part),
                )
            case AnswerPush(handle, answer):
                self._verdicts[handle] = answer
                self._answers[handle].set()
            case DropModel(handle):
                self._models.received.pop(handle, None)
            case AskOffer(peer):
                self._start(self._ask_offer, peer)
            case FetchModel(peer, offer):
                self._start(self._fetch, peer, offer)
            case LookForContacts():
                self._hooks.look()
            case Send(peer, message):
                self._caller.cast_nowait(peer, GOSSIP_SERVICE, encode_message(message))
            case Blame(peer, reason):
                self._context.guard.fault(peer, RemoteProtocolError(reason, peer))
            case Left():
                self._hooks.left()
            case _:
                assert_never(effect)

    def _start(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(fn, *args)

    def _do_next(self, job: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Work on the model: one job after the other, in the order in which the core wants them."""
        self._send_job.send_nowait(functools.partial(job, *args))

    async def _do_jobs(self) -> None:
        async for job in self._jobs:
            await job()

    # --- work on the model ---

    async def _train(self) -> None:
        trained, evaluation = await self._run_batch(self._train_and_look)
        if trained.finite:
            await self._hooks.stepped()
        self._hooks.trained(trained, evaluation)
        self._driver.feed(Trained(trio.current_time(), trained.finite))

    def _train_and_look(self) -> tuple[TrainedBatch, Evaluation | None]:
        """On the compute thread."""
        learner = self._models.learner
        trained = learner.train_batch()
        every = self._evaluate_every
        due = trained.finite and every and learner.trained % every == 0
        return trained, learner.evaluate() if due else None

    async def _adopt(self, vector: Tensor, trained: int) -> None:
        self._hooks.evaluated(await self._compute.run_own(self._adopt_and_look, vector, trained))

    def _adopt_and_look(self, vector: Tensor, trained: int) -> Evaluation:
        """On the compute thread."""
        self._models.adopt(vector, trained)
        return self._models.learner.evaluate()

    async def _take_snapshot(self, sequence: int) -> None:
        vector = await self._compute.run_own(self._models.copy)
        if vector is not None:
            self._models.keep(sequence, vector)
            self.snapshots_taken += 1
        self._driver.feed(SnapshotTaken(trio.current_time(), sequence, vector is not None))

    async def _average(self, part: int, received: list[tuple[PeerID, ReceivedModel]]) -> None:
        done = await self._compute.run_own(
            self._models.average, part, [model for _, model in received]
        )
        self._hooks.averaged(done)
        refused = tuple(received[row][0] for row in done.refused)
        self._driver.feed(Averaged(trio.current_time(), part, refused, done.finite))

    async def _roll_back(self) -> None:
        await self._compute.run_own(self._models.roll_back)
        self._hooks.rolled_back()
        self._driver.feed(RolledBack(trio.current_time()))

    # --- pushes of ours ---

    async def _push(self, effect: PushModel, part: Tensor) -> None:
        peer, push = effect.peer, effect.push
        began_s = trio.current_time()
        try:
            answer = await self._caller.call(
                peer, GOSSIP_SERVICE, encode_message(push), [to_wire(part)],
                deadline_s=self._deadline_s(peer),
            )  # fmt: skip
            with self._caller.guard.blaming(peer):
                verdict = decode_message_untrusted(answer.message)
                if not isinstance(verdict, PushAnswer):
                    raise RemoteProtocolError("the answer to a push is a PushAnswer")
        except CALL_FAILURES as error:
            busy = isinstance(error, CallError) and error.code == "busy"
            log.debug("push failed: peer=%s reason=%s", peer, error)
            self._driver.feed(PushFailed(trio.current_time(), effect.call, busy))
            return
        finally:
            self._models.close_part(push.sequence)
        took_s = trio.current_time() - began_s
        self._push_s[peer] = 0.8 * self._push_s.get(peer, took_s) + 0.2 * took_s
        self._driver.feed(PushAnswered(trio.current_time(), effect.call, verdict))

    def _deadline_s(self, peer: PeerID) -> float:
        usual_s = self._push_s.get(peer)
        wanted_s = _FIRST_PUSH_S if usual_s is None else 8 * usual_s
        return min(max(wanted_s, self._deadlines.floor_s), self._deadlines.ceiling_s)

    # --- what others ask ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call, or take one cast, of the `gossip` service."""
        message = decode_message_untrusted(incoming.message)
        match message:
            case Push():
                return Answer(encode_message(await self._take_push(incoming, message)))
            case OfferWanted():
                return Answer(encode_message(await self._offer()))
            case Leaving():
                self._driver.feed(Received(trio.current_time(), incoming.peer, message))
                return Answer()
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} asks for nothing")

    async def _take_push(self, incoming: Incoming, push: Push) -> PushAnswer:
        """Measure what came, show it to the core, and return its verdict."""
        handle = next(self._handles)
        expected = self._part_spec(push.part)
        wire = incoming.tensors[0] if incoming.tensors else None
        right = wire is not None and wire.spec == expected
        finite = True
        if wire is not None and right and not self.core.starting:
            vector = from_wire(wire)
            measured = await self._codec.run(self._models.measure, vector, push.part)
            finite = measured.finite
            self._models.received[handle] = ReceivedModel(incoming.peer, vector, measured)
        elif right:
            raise Refusal("busy", "this peer is still looking for its first model", 1.0)
        answered = self._answers[handle] = trio.Event()
        try:
            self._driver.feed(
                ModelArrived(
                    trio.current_time(), incoming.peer, push, handle,
                    elements=_elements(wire),
                    dtype_right=wire is not None and expected is not None and wire.spec.dtype == expected.dtype,
                    finite=finite,
                )
            )  # fmt: skip
            await answered.wait()
        finally:
            del self._answers[handle]
            answer = self._verdicts.pop(handle, None)
            if answer is None or answer.verdict != "taken":
                self._models.received.pop(handle, None)
        assert answer is not None
        return answer

    def _part_spec(self, part: int) -> TensorSpec | None:
        if part >= len(self._models.parts):
            return None
        table = self._models.parts[part]
        flat = self._models.learner.flat
        return TensorSpec(str(flat.dtype).removeprefix("torch."), (table.elements,))

    async def _offer(self) -> ModelOffer:
        """Say which model can be fetched from us; it is hashed when somebody asks."""
        standing, vector = self.core.offer, self._models.newest
        layout = self._models.layout.digest
        if standing is None or vector is None:
            nothing = self.core.standing
            return ModelOffer(nothing.epoch, 0, layout, nothing.trained, 0, b"", b"")
        version = standing.epoch, standing.sequence
        if self._offered is None or self._offered_of != version:
            snapshot = await self._codec.run(self._models.hashed, vector, standing.sequence)
            self._offered, self._offered_of = snapshot, version
            self.snapshots.keep(snapshot, offered=True)
        unsigned = ModelOffer(
            standing.epoch, standing.sequence, layout, standing.trained, standing.averages,
            self._offered.manifest.root, b"",
        )  # fmt: skip
        signed = signed_bytes(self._context.run.run_id, self._context.me, unsigned)
        return replace(unsigned, signature=self._context.signer.sign(signed))

    # --- a first model ---

    async def _ask_offer(self, peer: PeerID) -> None:
        try:
            offer = await self._call_for_offer(peer)
        except CALL_FAILURES as error:
            log.info("no offer: peer=%s reason=%s", peer, error)
            self._driver.feed(OfferFailed(trio.current_time(), peer))
            return
        self._driver.feed(OfferAnswered(trio.current_time(), peer, offer))

    async def _call_for_offer(self, peer: PeerID) -> ModelOffer:
        """Return what a peer offers. Raises CALL_FAILURES."""
        answer = await self._caller.call(
            peer, GOSSIP_SERVICE, encode_message(OfferWanted()), deadline_s=_OFFER_S
        )
        with self._caller.guard.blaming(peer):
            offer = decode_message_untrusted(answer.message)
            if not isinstance(offer, ModelOffer):
                raise RemoteProtocolError("what was wanted is a ModelOffer")
        return offer

    async def _fetch(self, peer: PeerID, offer: ModelOffer) -> None:
        """Fetch what a neighbour signed for, and try it."""
        try:
            vector = await self._fetched(peer, offer)
        except (FetchError, RemoteProtocolError) as error:
            log.warning("model not fetched: peer=%s reason=%s", peer, error)
            if isinstance(error, RemoteProtocolError):
                self._context.guard.fault(peer, error)
            self._driver.feed(ModelFailed(trio.current_time(), peer))
            return
        measured = await self._codec.run_own(self._models.measure, vector, None)
        loss, own_loss = await self._compute.run_own(self._models.try_out, vector)
        handle = next(self._handles)
        self._models.received[handle] = ReceivedModel(peer, vector, measured)
        log.info("model fetched: peer=%s loss=%.3f own_loss=%.3f", peer, loss, own_loss)
        now_s = trio.current_time()
        self._driver.feed(ModelFetched(now_s, peer, handle, measured.finite, loss, own_loss))

    async def _fetched(self, peer: PeerID, offer: ModelOffer) -> Tensor:
        signed = signed_bytes(self._context.run.run_id, peer, offer)
        if not self._context.verify(peer, signed, offer.signature):
            raise RemoteProtocolError("its offer of a model is not signed by it", peer)
        specs = expected_specs(self._models.tensors_of(self._models.learner.flat))
        fetch = Fetch(self._caller, self._codec, specs, part=MODEL, version=offer.sequence)
        state = await fetch.run([peer])
        if state.root != offer.root:
            raise RemoteProtocolError("sent another model than it signed for", peer)
        return await self._codec.run_own(functools.partial(self._models.vector_of, state.tensors))

    async def fetch_newest(self, peer: PeerID) -> Tensor | None:
        """Return a neighbour's newest model, for an export; None when it cannot be had."""
        with suppress(*CALL_FAILURES, FetchError):
            offer = await self._call_for_offer(peer)
            if offer.root:
                return await self._fetched(peer, offer)
        return None


def _elements(wire: WireTensor | None) -> int:
    """Count the numbers in a body; one that is no vector has a wrong number of them."""
    return wire.spec.shape[0] if wire is not None and len(wire.spec.shape) == 1 else 0
