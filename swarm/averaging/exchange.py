"""One exchange of a vector among the members of a group: a butterfly all-reduce, chunk by chunk, over calls.

Each member owns a part. A member sends its own numbers of a part to the part's owner, one chunk in a call; the answer is the
mean of that chunk, and comes when the owner has everybody's. Several chunks are on their way at once, so that summing and
sending overlap. A number crosses the network twice for each member, however many there are.

The owner sums in PeerID order, so its result does not depend on who was first; what it sends is what it keeps, so all hold
the same bits, in any codec. Hashes of the encoded chunks show it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
import trio
from torch import Tensor

from protocols.averaging.calls import ChunkCall, MeanCall, encode_call
from protocols.averaging.events import FetchMean, StartExchange
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from swarm.averaging.codecs import Codec, codec_of_means, decode_untrusted
from swarm.averaging.parts import chunk_spans, part_spans
from swarm.calls import CALL_FAILURES, Caller, CallError, Refusal, WireTensor
from swarm.calls.channel import allocate, recycle
from swarm.hosting.compute import ComputeThread
from swarm.tensors.wire import bytes_of

log = logging.getLogger(__name__)

AVERAGING_SERVICE: Final = "averaging"
IN_FLIGHT: Final = 4
"""Chunks on their way to one member: enough that its line is never idle while it sums."""
IN_FLIGHT_ALL: Final = 64
"""To all of them: each takes a stream, and its memory here and there. One to each member at the least."""
_BUSY_S: Final = 1.0
"""The longest between two tries at a member that says it is busy."""
_OWNERS_SHARE: Final = 0.7
"""Of an exchange's time for an owner to miss a member: its askers wait longer, and so do not blame it for that member."""

Chunk: TypeAlias = tuple[WireTensor, ...]


class ExchangeFailedError(Exception):
    """It cannot be finished because of one member."""

    def __init__(self, peer: PeerID, reason: str) -> None:
        super().__init__(f"peer {peer.short}: {reason}")
        self.peer = peer


@dataclass(frozen=True, slots=True)
class Mean:
    """A finished mean, and what others may still ask of it."""

    exchange: int
    digests: tuple[bytes, ...]
    values: Tensor
    """(n,) float32. With a direct codec `chunks` share its memory: it must not change while others may ask."""
    chunks: tuple[tuple[Chunk, ...], ...]
    """Encoded, by part."""


@dataclass(slots=True)
class Tools:
    """What exchanges of one node share."""

    caller: Caller
    codec_thread: ComputeThread
    codec: Codec
    chunk_elements: int


@dataclass(slots=True)
class Bytes:
    """What one round has cost this node, of numbers as they travel; frames and messages come on top."""

    sent: int = 0
    received: int = 0


def _size(chunk: Chunk) -> int:
    return sum(tensor.data.nbytes for tensor in chunk)


@dataclass(slots=True)
class _Sum:
    """One chunk of our own part."""

    received: dict[PeerID, Chunk] = field(default_factory=dict)
    all_here: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    encoded: Chunk | None = None


def digest_of(chunks: Sequence[Chunk]) -> bytes:
    """Hash one part of a mean: over the hashes of its chunks, which can be made as they come."""
    return hashlib.sha256(b"".join(_hash(chunk) for chunk in chunks)).digest()


def _hash(chunk: Chunk) -> bytes:
    digest = hashlib.sha256()
    for tensor in chunk:
        digest.update(tensor.data)
    return digest.digest()


class Cut:
    """How the vector is cut among the members of an exchange."""

    def __init__(
        self, effect: StartExchange | FetchMean, elements: int, chunk_elements: int
    ) -> None:
        self.members = [member.peer for member in effect.members]
        self.elements = elements
        spans = part_spans(elements, [member.bandwidth for member in effect.members])
        self.chunks = [chunk_spans(span, chunk_elements) for span in spans]


class Exchange:
    """Our part in one exchange, on both sides of the calls.

    Args:
      values: (n,) float32, memory for the mean.
      count: what is sent and received is added to it.
    """

    def __init__(
        self,
        tools: Tools,
        me: PeerID,
        effect: StartExchange,
        vector: Tensor,
        *,
        values: Tensor,
        count: Bytes,
    ) -> None:
        self.effect = effect
        self._tools = tools
        self._me = me
        self._vector = vector
        self._cut = Cut(effect, vector.numel(), tools.chunk_elements)
        self._mine = self._cut.members.index(me)
        total = sum(member.weight for member in effect.members)
        self._shares = [member.weight / total for member in effect.members]
        self._sums = [_Sum() for _ in self._cut.chunks[self._mine]]
        self._encoded: list[list[Chunk]] = [[()] * len(spans) for spans in self._cut.chunks]
        self._hashes: list[list[bytes]] = [[b""] * len(spans) for spans in self._cut.chunks]
        self._values = values
        self._over = False
        self._count = count

    async def run(self) -> Mean:
        """Exchange with all members. Raises ExchangeFailedError, naming the one that does not deliver."""
        failures: list[ExchangeFailedError] = []
        try:
            async with trio.open_nursery() as nursery:

                async def attempt(job: Callable[..., Awaitable[None]], *args: Any) -> None:
                    try:
                        await job(*args)
                    except ExchangeFailedError as error:
                        failures.append(error)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(attempt, self._reduce_all)
                at_once = max(
                    1, min(IN_FLIGHT, IN_FLIGHT_ALL // max(1, len(self._cut.members) - 1))
                )
                for part, peer in enumerate(self._cut.members):
                    if part != self._mine and self._cut.chunks[part]:
                        line = iter(range(len(self._cut.chunks[part])))
                        for _ in range(min(at_once, len(self._cut.chunks[part]))):
                            nursery.start_soon(attempt, self._send_chunks, part, peer, line)
        finally:
            self._over = bool(failures) or self._over
        if failures:
            self._give_up()
            raise failures[0]
        digests = tuple(hashlib.sha256(b"".join(hashes)).digest() for hashes in self._hashes)
        chunks = tuple(tuple(part) for part in self._encoded)
        return Mean(self.effect.exchange, digests, self._values, chunks)

    def stop(self) -> None:
        """Nobody is answered any more."""
        self._give_up()

    def _give_up(self) -> None:
        self._over = True
        for entry in self._sums:
            entry.done.set()

    # --- our numbers, to the owners ---

    async def _send_chunks(self, part: int, peer: PeerID, line: Iterator[int]) -> None:
        for chunk in line:
            await self._send_chunk(part, peer, chunk)

    async def _send_chunk(self, part: int, peer: PeerID, chunk: int) -> None:
        """Give the owner our numbers of one chunk, and take its mean."""
        tools, span = self._tools, self._cut.chunks[part][chunk]
        numbers = self._vector[span]
        if tools.codec.direct:
            encoded = tools.codec.encode(numbers)
            into = [bytes_of(self._values[span])]
        else:
            encoded = await tools.codec_thread.run_own(tools.codec.encode, numbers)
            into = _places(tools.codec, span)
        call = ChunkCall(self.effect.round_id, self.effect.exchange, chunk)
        answer = await self._ask(peer, call, encoded, into)
        self._count.sent += _size(encoded)
        self._count.received += _size(answer)
        try:
            with tools.caller.guard.blaming(peer):
                await tools.codec_thread.run_own(self._take_mean, part, chunk, answer)
        except RemoteProtocolError as error:
            raise ExchangeFailedError(peer, error.reason) from error

    async def _ask(
        self, peer: PeerID, call: ChunkCall, encoded: Chunk, into: Sequence[memoryview]
    ) -> Chunk:
        began_s, deadline_s = trio.current_time(), self.effect.deadline_s
        pause_s = 0.05
        while True:
            left_s = max(0.0, began_s + deadline_s - trio.current_time())
            try:
                answer = await self._tools.caller.call(
                    peer, AVERAGING_SERVICE, encode_call(call), encoded,
                    deadline_s=left_s, into=into,
                )  # fmt: skip
            except CallError as error:
                if error.code == "overtaken":
                    # It goes on with another attempt, or lacks somebody whom it will name: not its fault.
                    await trio.sleep(left_s + deadline_s)
                if error.code != "busy" or left_s <= 0:
                    raise ExchangeFailedError(peer, str(error)) from error
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BUSY_S)  # each time the numbers travel again
                continue
            except CALL_FAILURES as error:
                raise ExchangeFailedError(peer, str(error)) from error
            return tuple(answer.tensors)

    def _take_mean(self, part: int, chunk: int, tensors: Chunk) -> None:
        """Check a chunk of the mean and put it in its place. Raises RemoteProtocolError."""
        span = self._cut.chunks[part][chunk]
        codec = codec_of_means(self._tools.codec)
        values = decode_untrusted(codec, tensors, span.stop - span.start)
        if not self._tools.codec.direct:  # else it was received there
            self._values[span] = values
        self._encoded[part][chunk] = tensors
        self._hashes[part][chunk] = _hash(tensors)

    # --- our part ---

    async def _reduce_all(self) -> None:
        """Sum our part, chunk by chunk, as the others' numbers come."""
        with trio.move_on_after(self.effect.deadline_s * _OWNERS_SHARE) as scope:
            for chunk in range(len(self._sums)):
                await self._reduce(chunk)
        if scope.cancelled_caught:
            for entry in self._sums:
                missing = [
                    p for p in self._cut.members if p != self._me and p not in entry.received
                ]
                if missing and entry.encoded is None:
                    raise ExchangeFailedError(missing[0], "its numbers did not come in time")
            raise ExchangeFailedError(self._me, "summing took too long")

    async def _reduce(self, chunk: int) -> None:
        entry = self._sums[chunk]
        if len(self._cut.members) > 1:
            await entry.all_here.wait()
        try:
            entry.encoded = await self._tools.codec_thread.run_own(self._sum, chunk, entry.received)
        except _BadChunkError as bad:
            self._tools.caller.guard.fault(bad.peer, RemoteProtocolError(bad.reason, bad.peer))
            raise ExchangeFailedError(bad.peer, bad.reason) from bad
        for tensors in entry.received.values():
            for tensor in tensors:
                recycle(tensor.data)
        entry.received = dict.fromkeys(entry.received, ())
        self._encoded[self._mine][chunk] = entry.encoded
        entry.done.set()

    @torch.no_grad()
    def _sum(self, chunk: int, received: dict[PeerID, Chunk]) -> Chunk:
        """Return the encoded mean of one chunk; on the codec thread. Raises _BadChunkError."""
        span = self._cut.chunks[self._mine][chunk]
        codec, elements = self._tools.codec, span.stop - span.start
        total = self._values[span]
        first = True
        for peer, share in zip(self._cut.members, self._shares, strict=True):
            if peer == self._me:
                values = self._vector[span]
            else:
                try:
                    values = decode_untrusted(codec, received[peer], elements)
                except RemoteProtocolError as error:
                    raise _BadChunkError(peer, error.reason) from error
            if first:
                torch.mul(values, share, out=total)
            else:
                total.add_(values, alpha=share)
            first = False
        codec = codec_of_means(codec)
        encoded = codec.encode(total)
        if not codec.direct:
            total.copy_(codec.decode(encoded, elements))
        self._hashes[self._mine][chunk] = _hash(encoded)
        return encoded

    async def answer(self, peer: PeerID, call: ChunkCall, tensors: Chunk) -> Chunk:
        """Take a member's numbers of one chunk, and return its mean once it is summed. Raises Refusal, RemoteProtocolError."""
        if self._over:
            raise Refusal("overtaken", "this exchange is over here")
        if peer not in self._cut.members or call.chunk >= len(self._sums):
            raise RemoteProtocolError("no member of this exchange, or no such chunk")
        entry = self._sums[call.chunk]
        self._count.received += _size(tensors)
        if peer not in entry.received:  # else it asks again, and the first time counts
            entry.received[peer] = tensors
            if len(entry.received) == len(self._cut.members) - 1:
                entry.all_here.set()
        await entry.done.wait()
        if entry.encoded is None:
            raise Refusal("overtaken", "this exchange is over here")
        self._count.sent += _size(entry.encoded)
        return entry.encoded


class _BadChunkError(Exception):
    def __init__(self, peer: PeerID, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer
        self.reason = reason


async def fetch_mean(tools: Tools, effect: FetchMean, elements: int, count: Bytes) -> Mean:
    """Get a finished mean from those who hold it, one after the other. Raises ExchangeFailedError, naming the last."""
    cut = Cut(effect, elements, tools.chunk_elements)
    failure: ExchangeFailedError | None = None
    for holder in effect.holders:
        try:
            with trio.fail_after(effect.deadline_s):
                return await _fetch_from(tools, effect, cut, holder, count)
        except ExchangeFailedError as error:
            failure = error
        except trio.TooSlowError as error:
            failure = ExchangeFailedError(holder, "its mean did not come in time")
            failure.__cause__ = error
    assert failure is not None
    raise failure


async def _fetch_from(
    tools: Tools, effect: FetchMean, cut: Cut, holder: PeerID, count: Bytes
) -> Mean:
    values = torch.empty(cut.elements)
    parts: list[tuple[Chunk, ...]] = []
    for part, spans in enumerate(cut.chunks):
        try:
            chunks: list[Chunk] = []
            for chunk in range(len(spans)):
                call = MeanCall(effect.round_id, effect.exchange, part, chunk)
                answer = await tools.caller.call(
                    holder, AVERAGING_SERVICE, encode_call(call), deadline_s=effect.deadline_s,
                    into=_places(tools.codec, spans[chunk]),
                )  # fmt: skip
                chunks.append(tuple(answer.tensors))
                count.received += _size(chunks[-1])
            with tools.caller.guard.blaming(holder):
                await tools.codec_thread.run_own(
                    _take_part, tools.codec, values, spans, chunks, effect.digests[part]
                )
        except CALL_FAILURES as error:
            raise ExchangeFailedError(holder, str(error)) from error
        parts.append(tuple(chunks))
    return Mean(effect.exchange, effect.digests, values, tuple(parts))


def _places(codec: Codec, span: slice) -> list[memoryview]:
    """Return memory for one chunk of a mean, so that no answer can take more."""
    specs = codec_of_means(codec).specs(span.stop - span.start)
    return [allocate(spec.byte_count) for spec in specs]


def _take_part(
    codec: Codec, values: Tensor, spans: Sequence[slice], chunks: Sequence[Chunk], digest: bytes
) -> None:
    """Check one part of a mean that was fetched, and put it in its place. Raises RemoteProtocolError."""
    for span, tensors in zip(spans, chunks, strict=True):
        values[span] = decode_untrusted(codec_of_means(codec), tensors, span.stop - span.start)
    if digest_of(chunks) != digest:
        raise RemoteProtocolError("sent another mean than was agreed on")


def layout_of(elements: int, codec: Codec, chunk_elements: int, *, common: bytes = b"") -> bytes:
    """Hash what all members of a group must have in common; `common` is the caller's own."""
    text = f"murmura averaging layout:{elements}:{codec.name}:{chunk_elements}"
    return hashlib.blake2b(text.encode() + common, digest_size=32).digest()
