"""Frames over one Stream: the only place that reads or writes frame bytes.

A small frame costs one send and one receive: what fits in `SMALL_BYTES` is joined before it is sent, and headers are
read through a buffer of that size. A large tensor is received straight into the memory it will be used from.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.frames import (
    PREFIX_BYTES,
    FrameKind,
    Header,
    Limits,
    Prefix,
    TensorSpec,
    decode_header_untrusted,
    decode_prefix_untrusted,
    encode_frame,
)
from protocols.ids import PeerID
from protocols.ports import Stream, StreamClosedError
from swarm.calls.guard import Pace
from swarm.calls.messages import WireTensor
from swarm.calls.rates import UNLIMITED, Rates
from swarm.calls.traffic import Traffic

SMALL_BYTES: Final = 64 * 1024
"""Copying this much costs about 3 microseconds, a system call and its way through the event loop about 20."""

_MAPPED_BYTES_MIN: Final = 1 << 20
"""From here on tensors live in their own mapping: a bytearray would be cleared first, 0.3 s per GB in the event loop."""

_UNUSED_BYTES_MAX: Final = 64 * 1024 * 1024
_unused: Final[dict[int, list[memoryview]]] = {}
"""Memory given back by `recycle`, by size."""


@dataclass(frozen=True, slots=True)
class FrameHead:
    """A frame whose body has not been read yet, so that its size can be weighed first."""

    prefix: Prefix
    header: Header

    @property
    def kind(self) -> FrameKind:
        return self.prefix.kind

    @property
    def message(self) -> Any:
        return self.header.message


class Channel:
    """One stream with its read buffer. One task at a time uses it.

    Every method may raise StreamClosedError; those that read also RemoteProtocolError, which names the peer. After any
    error or cancellation the channel is of no use but to be closed.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        limits: Limits,
        pace: Pace,
        traffic: Traffic,
        rates: Rates = UNLIMITED,
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._pace = pace
        self._traffic = traffic
        self._rates = rates
        self._unpaid_bytes = 0  # received, not yet taken from the rate limit
        self._pending = memoryview(b"")  # received, not yet consumed

    @property
    def peer(self) -> PeerID:
        return self._stream.peer

    def readable(self) -> bool:
        """Tell whether something waits to be read; between calls that means the channel cannot be reused."""
        return bool(self._pending) or self._stream.readable()

    async def aclose(self) -> None:
        """Hang up."""
        await self._stream.aclose()

    async def send(
        self,
        kind: FrameKind,
        message: Any,
        tensors: Sequence[WireTensor] = (),
        *,
        lead: bytes = b"",
    ) -> None:
        """Send one frame, after `lead`: complete frames that travel with it. Paced when it is large.

        Raises:
          StreamClosedError: not all of it was taken, so the peer cannot have the whole frame.
          RemoteProtocolError: the peer reads too slowly.
        """
        for tensor in tensors:
            if tensor.data.nbytes != tensor.spec.byte_count:
                raise LocalProtocolError(
                    f"a tensor of {tensor.data.nbytes} bytes does not match {tensor.spec}"
                )
        head = lead + encode_frame(kind, message, [tensor.spec for tensor in tensors])
        if len(head) > self._limits.header_bytes_max + PREFIX_BYTES + len(lead):
            raise LocalProtocolError(f"a message of {len(head)} bytes is over the header limit")
        body_bytes = sum(tensor.data.nbytes for tensor in tensors)
        if len(head) + body_bytes <= SMALL_BYTES:
            await self._send_paced(
                memoryview(b"".join([head, *(tensor.data for tensor in tensors)]))
            )
        else:
            await self._send_paced(memoryview(head))
            for tensor in tensors:
                await self._send_paced(tensor.data)
        self._traffic.bytes_sent += len(head) + body_bytes

    async def send_raw(self, frames: bytes) -> None:
        """Send frames that are encoded already."""
        await self._send_paced(memoryview(frames))
        self._traffic.bytes_sent += len(frames)

    async def receive_head(self, limits: Callable[[], Limits] | None = None) -> FrameHead:
        """Wait, without limit, for a frame to begin; then its prefix and header must come at a sensible pace.

        Args:
          limits: asked once the frame has begun; None takes the channel's.
        """
        if self._unpaid_bytes:  # waited for here, where it cannot look like the peer's slowness
            unpaid_bytes, self._unpaid_bytes = self._unpaid_bytes, 0
            await self._rates.receiving(unpaid_bytes)
        if not self._pending:
            await self._receive_more(0)
        bounds = limits() if limits is not None else self._limits
        try:
            prefix = decode_prefix_untrusted(await self._take(PREFIX_BYTES), bounds)
            raw_header = await self._take(prefix.header_bytes)
            header = decode_header_untrusted(raw_header, prefix, bounds)
        except RemoteProtocolError as error:
            raise error.blaming(self.peer) from error
        return FrameHead(prefix, header)

    async def receive_body(
        self, head: FrameHead, into: Sequence[memoryview] = ()
    ) -> tuple[WireTensor, ...]:
        """Receive the tensors of a frame, each into the memory given for it, or into memory of its own."""
        specs = head.header.tensors
        if into and [spec.byte_count for spec in specs] != [place.nbytes for place in into]:
            raise RemoteProtocolError("the tensors have other sizes than were asked for", self.peer)
        places = into or [allocate(spec.byte_count) for spec in specs]
        return tuple(
            [
                await self._receive_tensor(spec, place)
                for spec, place in zip(specs, places, strict=True)
            ]
        )

    async def discard_body(self, head: FrameHead) -> None:
        """Receive the body of a frame and forget it, so that the stream can go on. Costs no memory."""
        missing = head.prefix.body_bytes - len(self._pending)
        self._pending = self._pending[head.prefix.body_bytes :]
        scratch = memoryview(bytearray(SMALL_BYTES))
        while missing > 0:
            part = scratch[: min(missing, SMALL_BYTES)]
            await self._receive_part(part)
            missing -= len(part)

    async def discard_rest(self) -> None:
        """Receive and forget until the peer hangs up.

        Closing with bytes unread makes p2pd reset the stream, and a reset overtakes what we sent last: the reason.
        """
        self._pending = memoryview(b"")
        while await self._stream.receive_some(SMALL_BYTES):
            pass

    async def _receive_tensor(self, spec: TensorSpec, data: memoryview) -> WireTensor:
        filled = min(len(self._pending), spec.byte_count)
        data[:filled] = self._pending[:filled]
        self._pending = self._pending[filled:]
        step = self._rates.download_part(self._pace.slice_bytes)
        for start in range(filled, spec.byte_count, step):
            await self._receive_part(data[start : start + step])
        return WireTensor(spec, data)

    async def _receive_part(self, part: memoryview) -> None:
        await self._rates.receiving(len(part))  # our own limit is not the peer's slowness
        with self._paced(len(part), "a tensor stopped arriving"):
            await self._stream.receive_into(part)
        self._traffic.bytes_received += len(part)

    async def _take(self, byte_count: int) -> memoryview:
        """Return the next bytes; they stay valid because the buffer under them is never written again."""
        if len(self._pending) < byte_count:
            with self._paced(0, "a frame header did not arrive"):
                await self._receive_more(byte_count)
        taken, self._pending = self._pending[:byte_count], self._pending[byte_count:]
        return taken

    async def _receive_more(self, byte_count: int) -> None:
        """Receive once, then until at least `byte_count` bytes are pending."""
        parts = [bytes(self._pending)] if self._pending else []
        missing = byte_count - len(self._pending)
        while True:
            chunk = await self._stream.receive_some(SMALL_BYTES)
            if not chunk:
                raise StreamClosedError(f"peer {self.peer.short} hung up")
            self._traffic.bytes_received += len(chunk)
            self._unpaid_bytes += len(chunk)
            parts.append(chunk)
            missing -= len(chunk)
            if missing <= 0:
                break
        self._pending = memoryview(chunk if len(parts) == 1 else b"".join(parts))

    async def _send_paced(self, data: memoryview) -> None:
        step = self._rates.upload_part(self._pace.slice_bytes)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            await self._rates.sending(len(part))
            with self._paced(len(part), "it stopped reading"):
                await self._stream.send_all(part)

    @contextmanager
    def _paced(self, byte_count: int, complaint: str) -> Iterator[None]:
        """Blame the peer when `byte_count` bytes take longer than the pace allows."""
        if self._pace.grace_s == math.inf:  # a cancel scope costs as much as a small system call
            yield
            return
        with trio.move_on_after(self._pace.seconds_for(byte_count)) as scope:
            yield
        if scope.cancelled_caught:
            raise RemoteProtocolError(f"{complaint} within the time allowed", self.peer)


def allocate(byte_count: int) -> memoryview:
    """Return writable memory for one tensor, aligned for any dtype, without touching all of it."""
    if byte_count < _MAPPED_BYTES_MIN:
        return memoryview(bytearray(byte_count))
    unused = _unused.get(byte_count)
    if unused:
        return unused.pop()
    # Receiving 128 MB costs 0.10 s of processor time into fresh pages, 0.13 s into a bytearray. Huge pages are no gain to
    # count on: 0.07 s when the machine has them at hand, 0.4 s when it has to make room for them.
    return memoryview(mmap.mmap(-1, byte_count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def recycle(data: memoryview) -> None:
    """Give back memory that was received into and that nobody looks at any more, for the next tensor of its size.

    Making pages anew costs a tenth of what receiving into them does. Nothing leaks: memory is read when it has been filled.
    """
    kept = sum(size * len(free) for size, free in _unused.items())
    if data.nbytes >= _MAPPED_BYTES_MIN and kept + data.nbytes <= _UNUSED_BYTES_MAX:
        _unused.setdefault(data.nbytes, []).append(data)
