"""Moving a stage's state between replicas: the `state` service, and the fetch of a newcomer or an export."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import trio
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.ledger.calls import StateCall, StateReply, call_untrusted
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
from swarm.hosting.compute import ComputeThread
from swarm.hosting.module import HostedStage
from swarm.state.fetch import ChunkRequest, FetchPlan
from swarm.state.manifest import Manifest, manifest_untrusted
from swarm.state.snapshot import Restore, Snapshot, expected_specs

log = logging.getLogger(__name__)

STATE_SERVICE = "state"
_CHUNK_S = 20.0
_MANIFEST_S = 10.0
_OFFERED_MAX = 2
"""Snapshots kept for newcomers: the one being fetched, and the next newcomer's. One more is for whoever asks."""
_FAILURES = (
    CallError,
    CallTimeoutError,
    PeerUnreachableError,
    StreamClosedError,
    RemoteProtocolError,
)


class FetchError(Exception):
    """No donor could give the state. Worth a retry: membership changes all the time."""


@dataclass(frozen=True, slots=True)
class FetchedState:
    """Verified against its manifest; `root` must still be compared with what the members committed."""

    donor: PeerID
    """Who sent the manifest."""
    step: int
    root: bytes
    tensors: Mapping[str, Tensor]
    seconds: float
    byte_count: int


class Snapshots:
    """The immutable snapshots a member offers. Answers the `state` service.

    Args:
      hosted: the stage, while its state is complete; else None.
    """

    def __init__(
        self,
        hosted: Callable[[], HostedStage | None],
        compute: ComputeThread,
        codec: ComputeThread,
    ) -> None:
        self._hosted = hosted
        self._compute = compute
        self._codec = codec
        self._offered: deque[Snapshot] = deque(maxlen=_OFFERED_MAX)
        self._asked: deque[Snapshot] = deque(maxlen=1)
        """Apart from those offered, so that whoever reads the model cannot push a newcomer's away."""
        self._lock = trio.Lock()

    async def take(self, *, offered: bool = False) -> Snapshot | None:
        """Return a snapshot of the state as it is now; taken once per step. None while the state is not complete."""
        async with self._lock:  # local work only: concurrent askers get the same snapshot
            hosted = self._hosted()
            if hosted is None:
                return None
            snapshot = self._find(hosted.stage, hosted.version)
            if snapshot is None:
                tensors = await self._compute.run_own(hosted.snapshot)
                step = int(tensors["step"])
                snapshot = await self._codec.run_own(_snapshot, tensors, hosted.stage, step)
            kept = self._offered if offered else self._asked
            if not any(known is snapshot for known in kept):
                kept.append(snapshot)
            return snapshot

    def _find(self, stage: int, step: int) -> Snapshot | None:
        for snapshot in (*self._offered, *self._asked):
            if (snapshot.manifest.stage, snapshot.manifest.step) == (stage, step):
                return snapshot
        return None

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the `state` service."""
        call = call_untrusted(StateCall, incoming.message)
        snapshot = await self._wanted(call)
        reply = StateReply(step=snapshot.manifest.step, root=snapshot.manifest.root)
        if call.chunk is None:
            return Answer(encode(reply), (_as_bytes_tensor(snapshot.manifest.to_bytes()),))
        if call.chunk >= len(snapshot.manifest.chunks):
            raise Refusal("bad-request", f"there are {len(snapshot.manifest.chunks)} chunks")
        return Answer(encode(reply), (_as_bytes_tensor(snapshot.chunk(call.chunk)),))

    async def _wanted(self, call: StateCall) -> Snapshot:
        """Find or take the snapshot that is asked for. Raises Refusal."""
        if call.step is not None:
            known = self._find(call.stage, call.step)
            if known is not None:
                return known
        hosted = self._hosted()
        if hosted is None or hosted.stage != call.stage:
            raise Refusal("not-here", f"this node does not hold the state of stage {call.stage}")
        taken = await self.take() if call.step in (None, hosted.version) else None
        if taken is None or taken.manifest.stage != call.stage:
            raise Refusal("step-passed", f"no snapshot of step {call.step} is kept here", 1.0)
        if call.step not in (None, taken.manifest.step):
            raise Refusal("step-passed", f"no snapshot of step {call.step} is kept here", 1.0)
        return taken


def _snapshot(tensors: Mapping[str, Tensor], stage: int, step: int) -> Snapshot:
    return Snapshot.of(tensors, stage=stage, step=step)


def _as_bytes_tensor(data: bytes | memoryview) -> WireTensor:
    return WireTensor(TensorSpec("uint8", (len(data),)), memoryview(data))


class Fetch:
    """Fetches one stage's state from donors, several at once, resuming at another when one fails."""

    def __init__(
        self,
        caller: Caller,
        codec: ComputeThread,
        expected: Mapping[str, TensorSpec],
        *,
        stage: int,
        step: int | None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """
        Args:
          expected: names and shapes of the tensors of this stage.
          step: of the state wanted; None takes the donor's newest.
          progress: told (bytes done, bytes in all).
        """
        self._caller = caller
        self._codec = codec
        self._expected = dict(expected)
        self._stage = stage
        self._step = step
        self._progress = progress

    async def run(self, donors: Sequence[PeerID]) -> FetchedState:
        """Fetch. Raises FetchError when no donor can give it."""
        began_s = trio.current_time()
        donor, manifest = await self._manifest(donors)
        try:
            restore = Restore(manifest, self._expected)
        except RemoteProtocolError as error:
            raise FetchError(f"the donors' state does not fit this stage: {error}") from error
        plan = FetchPlan(manifest, donors)
        await self._chunks(plan, restore, manifest)
        try:
            tensors = await self._codec.run_own(restore.finish_untrusted)
        except RemoteProtocolError as error:
            raise FetchError(str(error)) from error
        seconds = trio.current_time() - began_s
        return FetchedState(
            donor, manifest.step, manifest.root, tensors, seconds, manifest.byte_count
        )

    async def _manifest(self, donors: Sequence[PeerID]) -> tuple[PeerID, Manifest]:
        problem = "there is no donor"
        for donor in donors:
            call = StateCall(stage=self._stage, step=self._step)
            try:
                answer = await self._caller.call(
                    donor, STATE_SERVICE, encode(call), deadline_s=_MANIFEST_S
                )
                with self._caller.guard.blaming(donor):
                    reply = call_untrusted(StateReply, answer.message)
                    raw = _one_tensor_untrusted(answer)
                    manifest = await self._codec.run_own(manifest_untrusted, raw, reply.root)
            except _FAILURES as error:
                problem = str(error)
                log.info("donor skipped: peer=%s reason=%s", donor, problem)
                continue
            if manifest.stage == self._stage and self._step in (None, manifest.step):
                return donor, manifest
            problem = "the donor sent the manifest of another stage or step"
        raise FetchError(f"no manifest of stage {self._stage}: {problem}")

    async def _chunks(self, plan: FetchPlan, restore: Restore, manifest: Manifest) -> None:
        async with trio.open_nursery() as nursery:
            arrived = trio.Event()

            async def ask(request: ChunkRequest) -> None:
                await self._chunk(plan, restore, manifest, request)
                arrived.set()

            while not (plan.done or plan.stuck):
                for request in plan.next_requests(trio.current_time()):
                    nursery.start_soon(ask, request)
                wake_s = plan.wake_at_s()
                with trio.move_on_at(wake_s if wake_s is not None else float("inf")):
                    await arrived.wait()
                arrived = trio.Event()
                self._progress(plan.bytes_done, manifest.byte_count)
            nursery.cancel_scope.cancel()  # a second copy of a chunk may still be on its way
        if plan.stuck:
            blamed = ", ".join(peer.short for peer in plan.blamed) or "nobody"
            raise FetchError(f"every donor failed; false bytes from: {blamed}")

    async def _chunk(
        self, plan: FetchPlan, restore: Restore, manifest: Manifest, request: ChunkRequest
    ) -> None:
        call = StateCall(stage=self._stage, step=manifest.step, chunk=request.chunk)
        try:
            answer = await self._caller.call(
                request.donor, STATE_SERVICE, encode(call), deadline_s=_CHUNK_S
            )
            with self._caller.guard.blaming(request.donor):
                data = _one_tensor_untrusted(answer)
        except CallError as error:
            if error.code == "busy":
                wait_s = error.retry_after_s if error.retry_after_s is not None else 1.0
                plan.on_busy(request.donor, request.chunk, retry_at_s=trio.current_time() + wait_s)
            else:
                plan.on_failure(request.donor, request.chunk)
            return
        except _FAILURES:
            plan.on_failure(request.donor, request.chunk)
            return
        target = restore.chunk(request.chunk)
        matches = await self._codec.run_own(_store, target, data, manifest.chunks[request.chunk])
        if not matches:
            problem = RemoteProtocolError("sent other bytes than its manifest says", request.donor)
            self._caller.guard.fault(request.donor, problem)
        plan.on_checked_chunk(request.donor, request.chunk, matches=matches)


def _store(target: memoryview, data: memoryview, digest: bytes) -> bool:
    if hashlib.sha256(data).digest() != digest or len(data) != len(target):
        return False
    target[:] = data
    return True


def _one_tensor_untrusted(answer: Answer) -> memoryview:
    if len(answer.tensors) != 1 or answer.tensors[0].spec.dtype != "uint8":
        raise RemoteProtocolError("a snapshot comes as one tensor of bytes")
    return answer.tensors[0].data


def stage_specs(hosted: HostedStage) -> dict[str, TensorSpec]:
    """Describe what a snapshot of this stage holds."""
    with torch.no_grad():
        return expected_specs(hosted.snapshot())
