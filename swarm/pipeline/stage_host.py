"""The hosting half of a member: answers trainers' calls for one stage, under the tally's rules.

The tally decides what counts and the stage computes it; this file keeps the two in step. A microbatch enters the tally
as counting before its computation is queued and leaves it when the result is there, so "was it counted?" always has
an answer. Resets of the gradient go through the same queue as the work, so they cannot overtake it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

import trio
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from protocols.ledger.calls import (
    ClaimCall,
    ClaimReply,
    SettleCall,
    SettleReply,
    StageCall,
    WorkCall,
    WorkReply,
    stage_call_untrusted,
)
from protocols.ledger.grants import Grant, Verifier
from protocols.ledger.member import Ledger
from protocols.ledger.tally import Attempt, Tally, Work
from protocols.ledger.tally import Refusal as TallyRefusal
from protocols.ledger.view import MICROBATCHES_MAX, ids_of, pack_ids, unpack_ids
from protocols.run import RunSpec
from protocols.schema import encode
from swarm.calls import Answer, Incoming, Refusal, WireTensor
from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import BusyError, ClosedError, NonFiniteError, WrongStepError
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.shapes import input_spec, output_spec, target_spec
from swarm.pipeline.stage_server import StageServer
from swarm.tensors.wire import tensor_untrusted, to_wire

log = logging.getLogger(__name__)

STEP_WAIT_S: Final = 2.0
"""How long a call for the next step waits for the record that opens it here; it is a round trip away."""


@dataclass(slots=True)
class HostCounters:
    """What a node has served since it started, whichever stages it hosted. For status."""

    served: int = 0
    refused: int = 0
    counted: int = 0


class StageHost:
    """One hosted stage and its calls.

    Args:
      grants: checks what trainers show.
      ledger: whose tally counts; read anew at each call, since an expelled node gets another one.
      changed: called when the tally has grown; True when the gradient has become unusable.
      refuses_work: why no work is taken just now, or None.
    """

    def __init__(
        self,
        run: RunSpec,
        stage: HostedStage,
        *,
        compute: ComputeThread,
        codec: ComputeThread,
        counters: HostCounters,
        grants: Verifier,
        ledger: Callable[[], Ledger],
        changed: Callable[[bool], None],
        refuses_work: Callable[[], str | None],
    ) -> None:
        self.run = run
        self.stage = stage
        self.loaded = False
        """The state is that of a committed step."""
        self.committed_step = 0
        """What the state is, or will be once the steps that are queued have been applied."""
        self.counters = counters
        self._server = StageServer(stage, compute)
        self._codec = codec
        self._grants = grants
        self._ledger = ledger
        self._changed = changed
        self._refuses_work = refuses_work
        self.trainers: set[PeerID] = set()
        """Who has shown a lease of the present step."""
        self.diverged = ""
        """What was too large to go on with, in this step; empty while nothing is."""
        self._losses: dict[int, float] = {}
        self._step_opened = trio.Event()
        self._open_step = 0
        self._discarding = 0

    def loss_sum(self) -> float:
        """Add up the losses of the microbatches that this step's gradient contains; 0 but at the last stage."""
        return sum(self._losses.get(index, 0.0) for index in ids_of(self._ledger().tally.counted))

    def open_step(self, step: int) -> None:
        """The parameters of `step` - 1 are in place: calls for `step` may be computed."""
        self._open_step = step
        self.diverged = ""
        self.trainers.clear()
        self._step_opened.set()
        self._step_opened = trio.Event()

    def begin_discard(self) -> None:
        """Count nothing until `discard` has reset the gradient: what is counted before that would be lost with it."""
        self._discarding += 1

    async def discard(self) -> None:
        """Reset the gradient, behind the work that is queued already."""
        await self._server.exclusive(self.stage.reset_gradient)
        self._discarding -= 1

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the `stage` service. Raises Refusal and RemoteProtocolError."""
        call = stage_call_untrusted(incoming.message)
        try:
            reply = await self._answer(incoming.peer, call, incoming.tensors)
        except Refusal:
            self.counters.refused += 1
            raise
        self.counters.served += 1
        return reply

    async def _answer(
        self, peer: PeerID, call: StageCall, tensors: tuple[WireTensor, ...]
    ) -> Answer:
        match call:
            case WorkCall():
                return await self._work(peer, call, tensors)
            case SettleCall():
                tally = self._tally_of(call.step)
                self._require_grant(peer, call.grant, call.step, _bit(call.microbatch))
                attempt = Attempt(call.grant.generation, call.attempt)
                settled = tally.settle(call.microbatch, attempt)
                return Answer(encode(SettleReply(settled=settled.value, index=self._index())))
            case ClaimCall():
                tally = self._tally_of(call.step)
                self._require_grant(peer, call.grant, call.step, unpack_ids(call.ids))
                counted, pending = tally.claim(unpack_ids(call.ids), call.grant.generation)
                reply = ClaimReply(
                    counted=pack_ids(counted), pending=pack_ids(pending), index=self._index()
                )
                return Answer(encode(reply))
            case _:
                assert_never(call)

    def _index(self) -> int:
        record = self._ledger().record
        return record.index if record is not None else 0

    def _tally_of(self, step: int) -> Tally:
        tally = self._ledger().tally
        if step != tally.step:
            raise Refusal(
                "step-passed" if step < tally.step else "step-ahead",
                f"this node works on step {tally.step}, not {step}",
            )
        return tally

    def _require_grant(self, peer: PeerID, grant: Grant | None, step: int, ids: int) -> None:
        """Raise Refusal unless a lead has leased these microbatches of the present step to this trainer."""
        problem = self._why_not_entitled(peer, grant, step, ids)
        if problem is not None:
            raise Refusal(problem.code, problem.reason, problem.retry_after_s)
        self.trainers.add(peer)

    def _why_not_entitled(
        self, peer: PeerID, grant: Grant | None, step: int, ids: int
    ) -> TallyRefusal | None:
        if grant is None or grant.step != step or not self._grants.is_signed(peer, grant):
            return TallyRefusal("bad-request", "only who holds a lease may have work counted")
        if self._ledger().record is None:
            return TallyRefusal("not-here", "this node knows no record yet", 0.25)
        return self._ledger().why_not_entitled(grant, ids)

    # --- work ---

    async def _work(self, peer: PeerID, call: WorkCall, tensors: tuple[WireTensor, ...]) -> Answer:
        self._require(peer, call)
        await self._wait_for_step(call.step)
        self._require(peer, call)
        try:
            inputs = await self._codec.run(self._inputs_untrusted, call, tensors)
        except RemoteProtocolError:
            self._close_attempt(peer, call)
            raise
        except (BusyError, ClosedError) as error:
            self._close_attempt(peer, call)
            raise _refusal(error) from error
        self._require(peer, call)  # again: meanwhile this node may have been moved
        if call.kind in ("forward", "evaluate"):
            return await self._pass_forward(peer, call, inputs)
        return await self._pass_backward(peer, call, inputs)

    async def _wait_for_step(self, step: int) -> None:
        """Wait for the next step to open; for one further ahead it would take too long to be worth it."""
        with trio.move_on_after(STEP_WAIT_S):
            while step == self._open_step + 1:
                await self._step_opened.wait()

    def _require(self, peer: PeerID, call: WorkCall) -> None:
        """Raise Refusal unless this host can do the call now. Only who may have it counted closes an attempt by that."""
        if call.count and call.step == self._ledger().tally.step:
            if call.grant is None or call.grant.generation != call.generation:
                raise Refusal("bad-request", "only who holds a lease may have work counted")
            self._require_grant(peer, call.grant, call.step, _bit(call.microbatch))
        problem = self._why_not(call)
        if problem is not None:
            self._close_attempt(peer, call)
            raise problem

    def _why_not(self, call: WorkCall) -> Refusal | None:
        """Reasons to refuse that need no tensor."""
        member = self._ledger().member
        if member is None or call.stage != member.stage:
            here = "no stage" if member is None else f"stage {member.stage}"
            return Refusal("not-here", f"this node hosts {here}", 0.25)
        if not self.loaded or self.stage.stage != member.stage:
            return Refusal("not-here", "this node is not ready to serve its stage", 0.25)
        reason = self._refuses_work()
        if reason is not None:
            return Refusal("draining", reason)
        if (call.kind in ("loss", "evaluate")) != self.stage.is_last:
            return Refusal("bad-request", f"stage {call.stage} does not do {call.kind}")
        return None

    def _close_attempt(self, peer: PeerID, call: WorkCall) -> None:
        """What was refused must not count when a copy of the request turns up later. Without a lease nothing is closed."""
        tally = self._ledger().tally
        if not call.count or call.step != tally.step:
            return
        bit = _bit(call.microbatch)
        if self._why_not_entitled(peer, call.grant, call.step, bit) is None:
            tally.settle(call.microbatch, Attempt(call.generation, call.attempt))

    def _inputs_untrusted(
        self, call: WorkCall, tensors: tuple[WireTensor, ...]
    ) -> tuple[Tensor, ...]:
        """Check number, dtype, shape and finiteness of a call's tensors. Raises RemoteProtocolError only."""
        wanted = [("input", input_spec(self.run, call.stage, 1))]
        if call.kind == "backward":
            wanted.append(("output gradient", output_spec(self.run, call.stage, 1)))
        elif call.kind != "forward":
            wanted.append(("targets", target_spec(self.run, 1)))
        if len(tensors) != len(wanted):
            raise RemoteProtocolError(
                f"{call.kind} takes {len(wanted)} tensors, not {len(tensors)}"
            )
        return tuple(
            tensor_untrusted(wire, spec, name)
            for wire, (name, spec) in zip(tensors, wanted, strict=True)
        )

    async def _pass_forward(
        self, peer: PeerID, call: WorkCall, inputs: tuple[Tensor, ...]
    ) -> Answer:
        version = call.step - 1
        try:
            if call.kind == "evaluate":
                losses = await self._server.evaluate(*inputs, step=version)
                reply = WorkReply(index=self._index(), counted=False, loss=losses[0])
                return Answer(encode(reply))
            output = await self._server.forward(*inputs, step=version)
        except (BusyError, ClosedError, NonFiniteError, WrongStepError) as error:
            if isinstance(error, NonFiniteError) and peer in self._ledger().view:
                self.diverged = str(error)  # strangers can send what they like
            raise _refusal(error) from error
        return Answer(encode(WorkReply(index=self._index(), counted=False)), (to_wire(output),))

    async def _pass_backward(
        self, peer: PeerID, call: WorkCall, inputs: tuple[Tensor, ...]
    ) -> Answer:
        tally = self._ledger().tally
        attempt = Attempt(call.generation, call.attempt)
        if call.count and self._discarding:
            self._close_attempt(peer, call)
            raise Refusal("busy", "this member starts the step again", 0.05)
        # From here to the queue of the compute thread nothing waits, so a reset cannot come between.
        work = tally.begin(call.step, call.microbatch, attempt, count=call.count)
        if isinstance(work, TallyRefusal):
            raise Refusal(work.code, work.reason, work.retry_after_s)
        counting = work is Work.COUNT
        added = False

        def on_counted() -> None:
            nonlocal added
            added = counting

        version = call.step - 1
        loss: float | None = None
        grad_x: Tensor | None
        try:
            if call.kind == "loss":
                result = await self._server.loss(
                    *inputs, step=version, count=counting, on_counted=on_counted
                )
                loss, grad_x = result.losses[0], result.grad_x
            else:
                grad_x = await self._server.backward(
                    *inputs, step=version, count=counting, on_counted=on_counted
                )
        except (BusyError, ClosedError, NonFiniteError, WrongStepError) as error:
            if counting and isinstance(error, NonFiniteError):
                self.diverged = str(error)
            raise _refusal(error) from error
        except Exception:
            # Out of memory, a device that failed: whether the sum got a part of it nobody knows.
            if counting and tally is self._ledger().tally:
                log.exception("gradient lost: step=%d microbatch=%d", call.step, call.microbatch)
                self._changed(True)
            raise
        finally:
            counted_now = counting and tally.finish(call.microbatch, added=added)
            if counted_now and tally is self._ledger().tally:
                self._note_counted(call.microbatch, loss)
        # After an expulsion the tally is another one: what the old one counted is void.
        present = tally is self._ledger().tally
        counted = present and bool(tally.counted >> call.microbatch & 1)
        reply = WorkReply(index=self._index(), counted=counted, loss=loss)
        return Answer(encode(reply), () if grad_x is None else (to_wire(grad_x),))

    def _note_counted(self, microbatch: int, loss: float | None) -> None:
        self.counters.counted += 1
        if loss is not None:
            self._losses[microbatch] = loss
        self._changed(False)


def _bit(microbatch: int) -> int:
    """Return the set of one microbatch; one that cannot be is in no lease, and must not make a number of its size."""
    return 1 << min(microbatch, MICROBATCHES_MAX)


def _refusal(error: Exception) -> Refusal:
    """Say in the words of the wire why the stage did not compute."""
    if isinstance(error, BusyError):
        return Refusal("busy", "the queue of this stage is full", 0.1)
    if isinstance(error, WrongStepError):
        passed = error.asked < error.here
        return Refusal("step-passed" if passed else "step-ahead", str(error))
    if isinstance(error, NonFiniteError):
        return Refusal("diverged", f"the numbers are too large to go on with: {error}")
    return Refusal("draining", "this node is leaving")
