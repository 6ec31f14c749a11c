"""A network in memory: hosts with bounded streams over links that tests can cut, delay and slow down.

Time is trio's, so with a MockClock a slow link costs nothing. Faults are set on links, at a point the test chooses.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from protocols.ids import PeerID
from protocols.ports import (
    Buffer,
    Notice,
    PeerUnreachableError,
    Stream,
    StreamClosedError,
    StreamHandler,
)

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 * 1024
"""What a sender may have under way, per direction: little, so that tests meet back-pressure."""
NOTICES_MAX = 64
"""Notices kept for one late reader."""


@dataclass(slots=True)
class Link:
    """The way between two hosts; both directions alike."""

    cut: bool = False
    """Packets vanish: what is sent never arrives, new streams cannot be opened. Nothing is reset."""
    delay_s: float = 0.0
    bytes_per_s: float = float("inf")


class _Pipe:
    """One direction of a stream."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._chunks: deque[tuple[float, bytes]] = deque()  # (arrival time, bytes)
        self._buffered = 0
        self._line_free_s = 0.0  # when the link has carried all that was sent so far
        self._changed = trio.lowlevel.ParkingLot()
        self.finished = False  # the sender hung up: the rest can still be read
        self.broken = False  # the receiver hung up, or the connection was reset

    def wake(self) -> None:
        self._changed.unpark_all()

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            if self.broken or self.finished:
                raise StreamClosedError("the stream is closed")
            room = BUFFER_BYTES - self._buffered
            if room <= 0:
                await self._changed.park()
                continue
            part, view = bytes(view[:room]), view[room:]
            self._line_free_s = (
                max(self._line_free_s, trio.current_time()) + len(part) / self._link.bytes_per_s
            )
            self._chunks.append((self._line_free_s + self._link.delay_s, part))
            self._buffered += len(part)
            self.wake()

    def readable(self) -> bool:
        if self.broken:
            return True
        if self._chunks:
            return not self._link.cut and self._chunks[0][0] <= trio.current_time()
        return self.finished and not self._link.cut

    async def receive(self, bytes_max: int) -> bytes:
        while not self.readable():
            arrival_s = self._chunks[0][0] if self._chunks and not self._link.cut else float("inf")
            with trio.move_on_at(arrival_s):
                await self._changed.park()
        if self.broken:
            raise StreamClosedError("the stream was reset")
        if not self._chunks:
            return b""
        arrival_s, chunk = self._chunks.popleft()
        if len(chunk) > bytes_max:
            self._chunks.appendleft((arrival_s, chunk[bytes_max:]))
            chunk = chunk[:bytes_max]
        self._buffered -= len(chunk)
        self.wake()
        return chunk


class MemoryStream:
    """One end of a stream."""

    def __init__(self, peer: PeerID, inbound: _Pipe, outbound: _Pipe) -> None:
        self._peer = peer
        self.origin = str(peer)
        self._inbound = inbound
        self._outbound = outbound
        self.closed = False

    @property
    def peer(self) -> PeerID:
        return self._peer

    async def send_all(self, data: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        await self._outbound.send(bytes(data))

    async def receive_some(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self._check_open()
        data = await self._inbound.receive(bytes_max)
        self._check_open()
        return data

    async def receive_into(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            data = await self.receive_some(len(buffer) - filled)
            if not data:
                raise StreamClosedError("the stream ended early")
            buffer[filled : filled + len(data)] = data
            filled += len(data)

    def readable(self) -> bool:
        return self._inbound.readable()

    async def aclose(self) -> None:
        self.closed = True
        self._outbound.finished = True
        self._inbound.broken = True
        self._outbound.wake()
        self._inbound.wake()

    def wake(self) -> None:
        """Let readers and writers look at the link again."""
        self._inbound.wake()
        self._outbound.wake()

    def reset(self) -> None:
        """Break both directions, as a crash of either end or of the connection does."""
        for pipe in (self._inbound, self._outbound):
            pipe.broken = True
            pipe.wake()

    def _check_open(self) -> None:
        if self.closed:
            raise StreamClosedError("the stream is closed on this side")


class _Inbox:
    """The last notices of one topic that one reader has not taken yet."""

    def __init__(self) -> None:
        self.notices: deque[Notice] = deque(maxlen=NOTICES_MAX)
        self.arrived = trio.lowlevel.ParkingLot()

    def put(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.arrived.unpark_all()

    async def read(self) -> AsyncGenerator[Notice, None]:
        while True:
            await trio.lowlevel.checkpoint()
            while not self.notices:
                await self.arrived.park()
            yield self.notices.popleft()


@dataclass(slots=True)
class _Presence:
    """What the network knows of one host."""

    scopes: set[trio.CancelScope] = field(default_factory=set)  # one per running stream handler
    handlers: dict[str, StreamHandler] = field(default_factory=dict)
    inboxes: dict[str, list[_Inbox]] = field(default_factory=dict)
    connections: dict[PeerID, list[MemoryStream]] = field(default_factory=dict)


class MemoryNetwork:
    """All hosts and links. `async with MemoryNetwork.open() as network: a = network.join(peer_id)`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._present: dict[PeerID, _Presence] = {}
        self.origins: dict[PeerID, str] = {}
        """Where peers come from that share an address; all others have one of their own."""
        self._links: dict[frozenset[PeerID], Link] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[MemoryNetwork]:
        """Run the hosts' stream handlers in the background until the block ends; then cancel them."""
        async with trio.open_nursery() as nursery:
            try:
                yield cls(nursery)
            finally:
                nursery.cancel_scope.cancel()

    def join(self, peer_id: PeerID) -> MemoryHost:
        """Add a host, or bring a crashed one back without its handlers."""
        if peer_id in self._present:
            raise ValueError(f"{peer_id} is in the network already")
        self._present[peer_id] = _Presence()
        return MemoryHost(self, peer_id)

    def crash(self, peer_id: PeerID) -> None:
        """Take a host away at once: its handlers are cancelled, its streams reset."""
        presence = self._present[peer_id]
        for scope in presence.scopes:
            scope.cancel()
        for other in list(presence.connections):
            self.reset(peer_id, other)
        del self._present[peer_id]

    def link(self, a: PeerID, b: PeerID) -> Link:
        """Return the link between two hosts, to be changed in place; undo `cut` with `heal`."""
        return self._links.setdefault(frozenset((a, b)), Link())

    def heal(self, a: PeerID, b: PeerID) -> None:
        """Undo `cut`: what was under way arrives now."""
        self.link(a, b).cut = False
        presence = self._present.get(a)
        for stream in presence.connections.get(b, []) if presence else []:
            stream.wake()

    def reset(self, a: PeerID, b: PeerID) -> None:
        """Break the connection between two hosts with all its streams; they may connect again."""
        streams = self.presence(a).connections.pop(b, [])
        if b in self._present:
            streams = streams + self._present[b].connections.pop(a, [])
        for stream in streams:
            stream.reset()

    # What follows is for MemoryHost.

    def presence(self, peer: PeerID) -> _Presence:
        if peer not in self._present:
            raise PeerUnreachableError(peer, "no such host in this network")
        return self._present[peer]

    def connect(self, a: PeerID, b: PeerID) -> None:
        here, there = self.presence(a), self.presence(b)
        if self.link(a, b).cut:
            raise PeerUnreachableError(b, "the link is cut")
        here.connections.setdefault(b, [])
        there.connections.setdefault(a, [])

    def open_stream(self, opener: PeerID, server: PeerID, protocol: str) -> MemoryStream:
        self.connect(opener, server)
        here, there = self.presence(opener), self.presence(server)
        handler = there.handlers.get(protocol)
        if handler is None:
            raise PeerUnreachableError(server, f"does not serve {protocol}")
        link = self.link(opener, server)
        forth, back = _Pipe(link), _Pipe(link)
        ours, theirs = MemoryStream(server, back, forth), MemoryStream(opener, forth, back)
        theirs.origin = self.origins.get(opener, str(opener))
        for streams, stream in (
            (here.connections[server], ours),
            (there.connections[opener], theirs),
        ):
            streams[:] = [known for known in streams if not known.closed]
            streams.append(stream)
        self._nursery.start_soon(_serve, there, handler, theirs)
        return ours

    def publish(self, author: PeerID, topic: str, data: bytes) -> None:
        for peer, presence in self._present.items():
            if peer != author and not self.link(author, peer).cut:
                for inbox in presence.inboxes.get(topic, []):
                    inbox.put(Notice(author, data))


async def _serve(presence: _Presence, handler: StreamHandler, stream: MemoryStream) -> None:
    scope = trio.CancelScope()
    presence.scopes.add(scope)
    try:
        with scope:
            await handler(stream)
    except Exception:
        log.exception("stream handler failed: peer=%s", stream.peer)
    finally:
        presence.scopes.discard(scope)
        await stream.aclose()


class MemoryHost:
    """Implements protocols.ports.Host. Made by `MemoryNetwork.join`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerID) -> None:
        self._network = network
        self._peer_id = peer_id

    @property
    def peer_id(self) -> PeerID:
        return self._peer_id

    def addresses(self) -> Sequence[str]:
        return [f"/memory/1/p2p/{self._peer_id}"]

    async def connect(self, address: str) -> PeerID:
        await trio.lowlevel.checkpoint()
        if not address.startswith("/memory/"):
            raise ValueError(f"{address!a} is no address of this network")
        peer = PeerID.from_text(address.rpartition("/p2p/")[2])
        self._network.connect(self._peer_id, peer)
        return peer

    async def disconnect(self, peer: PeerID) -> None:
        await trio.lowlevel.checkpoint()
        self._network.reset(self._peer_id, peer)

    async def peers(self) -> Sequence[PeerID]:
        await trio.lowlevel.checkpoint()
        return list(self._network.presence(self._peer_id).connections)

    async def open_stream(self, peer: PeerID, protocol: str) -> Stream:
        await trio.lowlevel.checkpoint()
        return self._network.open_stream(self._peer_id, peer, protocol)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        await trio.lowlevel.checkpoint()
        self._network.presence(self._peer_id).handlers[protocol] = handler

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._network.publish(self._peer_id, topic, data)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[AsyncIterator[Notice]]:
        inbox = _Inbox()
        inboxes = self._network.presence(self._peer_id).inboxes.setdefault(topic, [])
        inboxes.append(inbox)
        notices = inbox.read()
        try:
            yield notices
        finally:
            inboxes.remove(inbox)
            await notices.aclose()
