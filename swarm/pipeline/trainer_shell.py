"""The trainer's hands: keeps the tensors of microbatches in flight and makes the calls its core asks for.

It never looks inside a tensor, so it needs no torch: bytes go from one stage to the next as they came.

Rule: a call that was cancelled touches nothing any more. It may still be running when the next step has begun, and what
it loaded or received belongs to the step before.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.ledger.calls import (
    ClaimCall,
    ClaimReply,
    SettleCall,
    SettleReply,
    WorkCall,
    WorkReply,
    call_untrusted,
)
from protocols.ledger.tally import Settled
from protocols.ledger.trainer import (
    AskClaim,
    AskSettle,
    AskStage,
    CallAnswered,
    CallFailed,
    CancelCall,
    ClaimAnswered,
    ReleaseTensors,
    SettleAnswered,
    TrainerEvent,
)
from protocols.ledger.view import pack_ids, unpack_ids
from protocols.replies import Hello
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from protocols.schema import encode
from swarm.calls import (
    Answer,
    Caller,
    CallError,
    CallTimeoutError,
    Incoming,
    PeerUnreachableError,
    Refusal,
    StreamClosedError,
    WireTensor,
)
from swarm.data.sequences import Dataset, TokenBatch
from swarm.pipeline.shapes import input_spec, output_spec

log = logging.getLogger(__name__)

STAGE_SERVICE = "stage"
_QUESTION_S = 5.0
"""Settle and claim need no computation; a member that takes longer is asked again."""

AnswerLocally: TypeAlias = Callable[[Incoming], Awaitable[Answer]]
Ask: TypeAlias = AskStage | AskSettle | AskClaim


class TrainerShell:
    """Performs the trainer core's effects.

    Args:
      answer_locally: our own stage host: a peer cannot dial itself.
      feed: takes the events that answer the asks.
      unreachable: told of peers that could not be reached.
    """

    def __init__(
        self,
        run: RunSpec,
        me: PeerID,
        caller: Caller,
        *,
        answer_locally: AnswerLocally,
        feed: Callable[[TrainerEvent], None],
        unreachable: Callable[[PeerID], None],
    ) -> None:
        self.run = run
        self.dataset: Dataset | None = None
        self.diverged = False
        """A stage has said, since the last step, that the numbers are too large to go on with."""
        self._me = me
        self._caller = caller
        self._answer_locally = answer_locally
        self._feed = feed
        self._unreachable = unreachable
        self._inputs: dict[tuple[int, int], WireTensor] = {}
        self._gradients: dict[tuple[int, int], WireTensor] = {}
        self._targets: dict[int, WireTensor] = {}
        self._scopes: dict[int, trio.CancelScope] = {}

    @property
    def bytes_held(self) -> int:
        """Memory of the tensors kept for microbatches in flight."""
        kept = [*self._inputs.values(), *self._gradients.values(), *self._targets.values()]
        return sum(tensor.data.nbytes for tensor in kept)

    def perform(self, effect: Ask | CancelCall | ReleaseTensors, nursery: trio.Nursery) -> None:
        """Start, cancel or forget, as the core says."""
        if isinstance(effect, CancelCall):
            scope = self._scopes.pop(effect.call, None)
            if scope is not None:
                scope.cancel()
        elif isinstance(effect, ReleaseTensors):
            self._release(effect.microbatch)
        else:
            scope = trio.CancelScope()
            self._scopes[effect.call] = scope
            nursery.start_soon(self._ask, effect, scope)

    def _release(self, microbatch: int | None) -> None:
        if microbatch is None:
            self._inputs.clear()
            self._gradients.clear()
            self._targets.clear()
            return
        self._targets.pop(microbatch, None)
        for kept in (self._inputs, self._gradients):
            for key in [key for key in kept if key[0] == microbatch]:
                del kept[key]

    async def _ask(self, ask: Ask, scope: trio.CancelScope) -> None:
        """Make one call and feed what came of it, unless it was cancelled."""
        with scope:
            if ask.call not in self._scopes:
                return  # before it began
            event = await self._outcome(ask)
            if self._scopes.pop(ask.call, None) is not None:
                self._feed(event)

    async def _outcome(self, ask: Ask) -> TrainerEvent:
        try:
            if isinstance(ask, AskStage):
                return await self._ask_stage(ask)
            if isinstance(ask, AskSettle):
                return await self._ask_settle(ask)
            return await self._ask_claim(ask)
        except CallError as error:
            self.diverged = self.diverged or error.code == "diverged"
            return CallFailed(trio.current_time(), ask.call, error.code, error.retry_after_s)
        except Refusal as refusal:
            reply = refusal.reply
            self.diverged = self.diverged or reply.code == "diverged"
            return CallFailed(trio.current_time(), ask.call, reply.code, reply.retry_after_s)
        except PeerUnreachableError:
            self._unreachable(ask.peer)
            return CallFailed(trio.current_time(), ask.call, "not-here", 1.0)
        except (CallTimeoutError, StreamClosedError, RemoteProtocolError) as error:
            log.info(
                "call lost: peer=%s microbatch=%s step=%d reason=%s",
                ask.peer,
                getattr(ask, "microbatch", "-"),
                ask.step,
                error,
            )
            return CallFailed(trio.current_time(), ask.call, None)

    async def _call(
        self, peer: PeerID, message: object, tensors: tuple[WireTensor, ...], deadline_s: float
    ) -> Answer:
        plain = encode(message)
        if peer != self._me:
            return await self._caller.call(
                peer, STAGE_SERVICE, plain, tensors, deadline_s=deadline_s
            )
        return await self._answer_locally(
            Incoming(peer, Hello(run=self.run.run_id, role="trainer"), plain, tensors)
        )

    # --- work ---

    async def _ask_stage(self, ask: AskStage) -> CallAnswered:
        call = WorkCall(
            kind=ask.kind,
            step=ask.step,
            microbatch=ask.microbatch,
            stage=ask.stage,
            count=ask.count,
            generation=ask.attempt.generation,
            attempt=ask.attempt.number,
            grant=ask.grant if ask.count else None,
        )
        answer = await self._call(ask.peer, call, self._tensors_for(ask), ask.deadline_s)
        with self._caller.guard.blaming(ask.peer):
            reply = call_untrusted(WorkReply, answer.message)
            self._check_untrusted(ask, reply, answer.tensors)
        if ask.call in self._scopes:
            self._keep(ask, answer.tensors)
        return CallAnswered(trio.current_time(), ask.call, reply.index, reply.counted, reply.loss)

    def _tensors_for(self, ask: AskStage) -> tuple[WireTensor, ...]:
        key = (ask.microbatch, ask.stage)
        if ask.stage == 0 and key not in self._inputs:
            self._load(ask)
        first = self._inputs[key]
        if ask.kind == "forward":
            return (first,)
        if ask.kind == "backward":
            return first, self._gradients[key]
        if ask.microbatch not in self._targets:
            self._load(ask)
        return first, self._targets[ask.microbatch]

    def _load(self, ask: AskStage) -> None:
        """Take the microbatch's tokens from the dataset; held-out ones follow the training ones."""
        assert self.dataset is not None
        per_step = pipeline_of(self.run).microbatches
        batch: TokenBatch
        if ask.microbatch < per_step:
            batch = self.dataset.training_batch(ask.step - 1, ask.microbatch)
        else:
            batch = self.dataset.held_out_batch(ask.microbatch - per_step)
        self._inputs[ask.microbatch, 0] = WireTensor(batch.spec, memoryview(batch.inputs))
        self._targets[ask.microbatch] = WireTensor(batch.spec, memoryview(batch.targets))

    def _check_untrusted(
        self, ask: AskStage, reply: WorkReply, tensors: Sequence[WireTensor]
    ) -> None:
        """Check that a stage returned what was asked for. Raises RemoteProtocolError only."""
        wanted: list[TensorSpec] = []
        if ask.kind == "forward":
            wanted = [output_spec(self.run, ask.stage, 1)]
        elif ask.kind != "evaluate" and ask.stage > 0:
            wanted = [input_spec(self.run, ask.stage, 1)]
        if [tensor.spec for tensor in tensors] != wanted:
            raise RemoteProtocolError(f"{ask.kind} answered with other tensors than it should")
        if ask.kind in ("loss", "evaluate") and reply.loss is None:
            raise RemoteProtocolError(f"{ask.kind} answered without a loss")

    def _keep(self, ask: AskStage, tensors: Sequence[WireTensor]) -> None:
        if ask.kind == "forward":
            self._inputs[ask.microbatch, ask.stage + 1] = tensors[0]
        elif ask.kind != "evaluate" and ask.stage > 0:
            self._gradients[ask.microbatch, ask.stage - 1] = tensors[0]

    # --- questions ---

    async def _ask_settle(self, ask: AskSettle) -> SettleAnswered:
        call = SettleCall(
            step=ask.step,
            microbatch=ask.microbatch,
            attempt=ask.attempt.number,
            grant=ask.grant,
        )
        answer = await self._call(ask.peer, call, (), _QUESTION_S)
        with self._caller.guard.blaming(ask.peer):
            reply = call_untrusted(SettleReply, answer.message)
        return SettleAnswered(trio.current_time(), ask.call, Settled(reply.settled), reply.index)

    async def _ask_claim(self, ask: AskClaim) -> ClaimAnswered:
        call = ClaimCall(step=ask.step, ids=pack_ids(ask.ids), grant=ask.grant)
        answer = await self._call(ask.peer, call, (), _QUESTION_S)
        with self._caller.guard.blaming(ask.peer):
            reply = call_untrusted(ClaimReply, answer.message)
        return ClaimAnswered(
            trio.current_time(),
            ask.call,
            unpack_ids(reply.counted),
            unpack_ids(reply.pending),
            reply.index,
        )
