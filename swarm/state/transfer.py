"""Moving a part's state between peers: the `state` service, and the fetch of a newcomer or an export."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.schema import encode
from protocols.state_calls import STATE_SERVICE, StateCall, StateReply, state_call_untrusted
from swarm.calls import (
    CALL_FAILURES,
    Answer,
    Caller,
    CallError,
    Incoming,
    Refusal,
    WireTensor,
)
from swarm.hosting.compute import ComputeThread
from swarm.state.fetch import ChunkRequest, FetchPlan
from swarm.state.manifest import Manifest, manifest_untrusted
from swarm.state.part import Part
from swarm.state.snapshot import Restore, Snapshot

log = logging.getLogger(__name__)

_CHUNK_S = 20.0
_MANIFEST_S = 10.0
_STALLED_S = 120.0
"""A fetch to which no donor adds a chunk for so long is given up: busy donors are waited for, but not for ever."""
_OFFERED_MAX = 2
"""Snapshots kept for newcomers: the one being fetched, and the next newcomer's. One more is for whoever asks."""


class FetchError(Exception):
    """No donor could give the state. Worth a retry: membership changes all the time."""


@dataclass(frozen=True, slots=True)
class FetchedState:
    """Verified against its manifest; `root` must still be compared with what the members committed."""

    donor: PeerID
    """Who sent the manifest."""
    version: int
    root: bytes
    tensors: Mapping[str, Tensor]
    seconds: float
    byte_count: int


class Snapshots:
    """The immutable snapshots of parts that this node offers. Answers the `state` service.

    Args:
      find: returns a part by its name, while its state is complete and here.
      kept: returns a snapshot, by part and version, that somebody else keeps account of.
      asked_max: how many stay in memory of those that nobody was promised.
    """

    def __init__(
        self,
        find: Callable[[str], Part | None],
        compute: ComputeThread,
        codec: ComputeThread,
        *,
        kept: Callable[[str, int], Snapshot | None] = lambda name, version: None,
        asked_max: int = 1,
    ) -> None:
        self._find_part = find
        self._kept = kept
        self._compute = compute
        self._codec = codec
        self._offered: deque[Snapshot] = deque(maxlen=_OFFERED_MAX)
        self._asked: deque[Snapshot] = deque(maxlen=asked_max)
        """Apart from those offered, so that whoever reads the model cannot push a newcomer's away."""
        self._lock = trio.Lock()

    async def take(self, name: str, *, offered: bool = False) -> Snapshot | None:
        """Return a snapshot of a part as it is now; taken once per version. None while it is not here, or not complete."""
        async with self._lock:  # local work only: concurrent askers get the same snapshot
            part = self._find_part(name)
            if part is None:
                return None
            snapshot = self.find(name, part.version)
            if snapshot is None:
                version, tensors = await self._compute.run_own(part.snapshot)
                snapshot = await self._codec.run_own(_snapshot, tensors, name, version)
            self.keep(snapshot, offered=offered)
            return snapshot

    def keep(self, snapshot: Snapshot, *, offered: bool) -> None:
        """Answer for this snapshot until newer ones take its place."""
        kept = self._offered if offered else self._asked
        if not any(known is snapshot for known in kept):
            kept.append(snapshot)

    def find(self, part: str, version: int) -> Snapshot | None:
        for snapshot in (*self._offered, *self._asked):
            if (snapshot.manifest.part, snapshot.manifest.version) == (part, version):
                return snapshot
        return self._kept(part, version)

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the `state` service."""
        call = state_call_untrusted(StateCall, incoming.message)
        snapshot = await self._wanted(call)
        reply = StateReply(version=snapshot.manifest.version, root=snapshot.manifest.root)
        if call.chunk is None:
            return Answer(encode(reply), (_as_bytes_tensor(snapshot.manifest.to_bytes()),))
        if call.chunk >= len(snapshot.manifest.chunks):
            raise Refusal("bad-request", f"there are {len(snapshot.manifest.chunks)} chunks")
        return Answer(encode(reply), (_as_bytes_tensor(snapshot.chunk(call.chunk)),))

    async def _wanted(self, call: StateCall) -> Snapshot:
        """Find or take the snapshot that is asked for. Raises Refusal."""
        if call.version is not None:
            known = self.find(call.part, call.version)
            if known is not None:
                return known
        part = self._find_part(call.part)
        if part is None:
            raise Refusal("not-here", f"this node does not hold the state of {call.part!a}")
        taken = await self.take(call.part) if call.version in (None, part.version) else None
        if taken is None or call.version not in (None, taken.manifest.version):
            raise Refusal("step-passed", f"no snapshot of version {call.version} is kept here", 1.0)
        return taken


def _snapshot(tensors: Mapping[str, Tensor], part: str, version: int) -> Snapshot:
    return Snapshot.of(tensors, part=part, version=version)


def _as_bytes_tensor(data: bytes | memoryview) -> WireTensor:
    return WireTensor(TensorSpec("uint8", (len(data),)), memoryview(data))


class Fetch:
    """Fetches one part's state from donors, several at once, resuming at another when one fails."""

    def __init__(
        self,
        caller: Caller,
        codec: ComputeThread,
        expected: Mapping[str, TensorSpec],
        *,
        part: str,
        version: int | None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """
        Args:
          expected: names and shapes of the tensors of this part.
          version: of the state wanted; None takes the donor's newest.
          progress: told (bytes done, bytes in all).
        """
        self._caller = caller
        self._codec = codec
        self._expected = dict(expected)
        self._part = part
        self._version = version
        self._progress = progress

    async def run(self, donors: Sequence[PeerID]) -> FetchedState:
        """Fetch. Raises FetchError when no donor can give it."""
        began_s = trio.current_time()
        donor, manifest = await self._manifest(donors)
        try:
            restore = Restore(manifest, self._expected)
        except RemoteProtocolError as error:
            raise FetchError(f"the donors' state does not fit this part: {error}") from error
        plan = FetchPlan(manifest, donors)
        await self._chunks(plan, restore, manifest)
        try:
            tensors = await self._codec.run_own(restore.finish_untrusted)
        except RemoteProtocolError as error:
            raise FetchError(str(error)) from error
        seconds = trio.current_time() - began_s
        return FetchedState(
            donor, manifest.version, manifest.root, tensors, seconds, manifest.byte_count
        )

    async def _manifest(self, donors: Sequence[PeerID]) -> tuple[PeerID, Manifest]:
        problem = "there is no donor"
        for donor in donors:
            call = StateCall(part=self._part, version=self._version)
            try:
                answer = await self._caller.call(
                    donor, STATE_SERVICE, encode(call), deadline_s=_MANIFEST_S
                )
                with self._caller.guard.blaming(donor):
                    reply = state_call_untrusted(StateReply, answer.message)
                    raw = _one_tensor_untrusted(answer)
                    manifest = await self._codec.run_own(manifest_untrusted, raw, reply.root)
            except CALL_FAILURES as error:
                problem = str(error)
                log.info("donor skipped: peer=%s reason=%s", donor, problem)
                continue
            if manifest.part == self._part and self._version in (None, manifest.version):
                return donor, manifest
            problem = "the donor sent the manifest of another part or version"
        raise FetchError(f"no manifest of {self._part}: {problem}")

    async def _chunks(self, plan: FetchPlan, restore: Restore, manifest: Manifest) -> None:
        async with trio.open_nursery() as nursery:
            arrived = trio.Event()
            before, stalled_at_s = 0, trio.current_time() + _STALLED_S

            async def ask(request: ChunkRequest) -> None:
                await self._chunk(plan, restore, manifest, request)
                arrived.set()

            while not (plan.done or plan.stuck):
                for request in plan.next_requests(trio.current_time()):
                    nursery.start_soon(ask, request)
                wake_s = plan.wake_at_s()
                with trio.move_on_at(min(stalled_at_s, math.inf if wake_s is None else wake_s)):
                    await arrived.wait()
                arrived = trio.Event()
                if plan.bytes_done > before:
                    before, stalled_at_s = plan.bytes_done, trio.current_time() + _STALLED_S
                elif trio.current_time() >= stalled_at_s:
                    break
                self._progress(plan.bytes_done, manifest.byte_count)
            nursery.cancel_scope.cancel()  # a second copy of a chunk may still be on its way
        if plan.stuck:
            blamed = ", ".join(peer.short for peer in plan.blamed) or "nobody"
            raise FetchError(f"every donor failed; false bytes from: {blamed}")
        if not plan.done:
            raise FetchError(f"no donor has sent anything for {_STALLED_S:g} s")

    async def _chunk(
        self, plan: FetchPlan, restore: Restore, manifest: Manifest, request: ChunkRequest
    ) -> None:
        call = StateCall(part=self._part, version=manifest.version, chunk=request.chunk)
        try:
            answer = await self._caller.call(
                request.donor, STATE_SERVICE, encode(call), deadline_s=_CHUNK_S
            )
            with self._caller.guard.blaming(request.donor):
                reply = state_call_untrusted(StateReply, answer.message)
                data = _one_tensor_untrusted(answer)
        except CallError as error:
            if error.code == "busy":
                wait_s = error.retry_after_s if error.retry_after_s is not None else 1.0
                plan.on_busy(request.donor, request.chunk, retry_at_s=trio.current_time() + wait_s)
            else:
                plan.on_failure(request.donor, request.chunk)
            return
        except CALL_FAILURES:
            plan.on_failure(request.donor, request.chunk)
            return
        if reply.root != manifest.root:
            # It holds another state than the donor of the manifest. Which of the two is false cannot be told here.
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
