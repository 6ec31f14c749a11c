"""The outside world as the shells see it. Each port has one contract test suite that every implementation passes.

| port | real | for tests and the simulator |
|---|---|---|
| Host | node.p2pd.host.P2pdHost | tests.fakes.host.MemoryHost |
| Directory | node.dht.client.DhtDirectory | tests.fakes.directory.MemoryDirectory |
| Signer | node.identity.Identity | tests.fakes.signer.SeededSigner |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from protocols.ids import PeerID

Buffer: TypeAlias = bytes | bytearray | memoryview


class StreamClosedError(Exception):
    """The stream ended before all bytes were sent or received. Says nothing about whose fault it is."""


class PeerUnreachableError(Exception):
    """No stream could be opened. Worth a retry later; the reason is for people."""

    def __init__(self, peer: PeerID, reason: str) -> None:
        super().__init__(f"peer {peer} cannot be reached: {reason}")
        self.peer = peer
        self.reason = reason


class Stream(Protocol):
    """One bidirectional byte stream to an authenticated peer. One reader and one writer at a time."""

    @property
    def peer(self) -> PeerID: ...

    @property
    def origin(self) -> str:
        """Where it comes from, for bounds: an IPv4 address or an IPv6 /64, the relay's when relayed; "" if unknown."""
        ...

    async def send_all(self, data: Buffer) -> None:
        """Send every byte, waiting for room. Raises StreamClosedError."""
        ...

    async def receive_some(self, bytes_max: int) -> bytes:
        """Return 1 to `bytes_max` bytes, or b"" once the peer has finished. Raises StreamClosedError on a reset."""
        ...

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill the whole buffer in place, no second copy. Raises StreamClosedError when the stream ends first."""
        ...

    def readable(self) -> bool:
        """Tell whether receive_some would return at once: bytes are here, or the peer has hung up. Never blocks.

        A stream that waits in a pool for its next request must not be: nobody was asked anything.
        """
        ...

    async def aclose(self) -> None:
        """Hang up both directions at once. Safe to call twice, from a cancelled task too."""
        ...


StreamHandler: TypeAlias = Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Notice:
    """One message heard on a topic, from the peer that signed it."""

    peer: PeerID
    data: bytes


class Host(Protocol):
    """One node's presence in the network. All methods may raise PeerUnreachableError where a peer is named."""

    @property
    def peer_id(self) -> PeerID: ...

    def addresses(self) -> Sequence[str]:
        """Multiaddrs others can dial, each ending in /p2p/<PeerID>; empty while the transport restarts."""
        ...

    async def connect(self, address: str) -> PeerID:
        """Dial one multiaddr that ends in /p2p/<PeerID> and return who answered."""
        ...

    async def disconnect(self, peer: PeerID) -> None: ...

    async def peers(self) -> Sequence[PeerID]:
        """Peers with a live connection, in any order, ourselves left out."""
        ...

    async def open_stream(self, peer: PeerID, protocol: str) -> Stream: ...

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` for every stream peers open on `protocol`, until the Host closes.

        Stays in force across restarts of the transport. The stream is closed when the handler returns or raises.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None: ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Notice]]:
        """Listen to what other peers publish on a topic. Late readers lose the oldest notices, never memory."""
        ...


@dataclass(frozen=True, slots=True)
class DirectoryRecord:
    """One statement of one peer, already checked: signature, owner and expiry."""

    peer: PeerID
    value: bytes
    """msgpack; what is inside is the caller's to decode as untrusted."""
    expires_s: float
    """Unix seconds."""
    issued_s: float = 0.0
    """Unix seconds by the clock of its author."""


class Directory(Protocol):
    """A shared dictionary of short-lived signed records: key -> {PeerID: value}. Eventually consistent."""

    async def announce(self, key: str, value: bytes, lifetime_s: float) -> bool:
        """Write our own record under `key`; a later one replaces it. True once another peer (or, alone, we) stored it.

        Until `withdraw`, or until this node ends, the record is written again before it expires: `lifetime_s` (at most
        600) is how long the others believe it after we have died.
        """
        ...

    async def withdraw(self, key: str) -> None:
        """Replace our record by one that says we left. Best effort; expiry does the rest."""
        ...

    async def look_up(
        self, key: str, *, first: Callable[[Sequence[DirectoryRecord]], None] | None = None
    ) -> Sequence[DirectoryRecord]:
        """Return every live record under `key`, sorted by PeerID. Never raises for bad records: they are dropped and counted.

        Args:
          first: told what the first peer had that holds anything, while the others are still being asked. Not told when nobody
            holds anything.
        """
        ...


class Signer(Protocol):
    """Our identity's private half."""

    @property
    def peer_id(self) -> PeerID: ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature."""
        ...


VerifySignature: TypeAlias = Callable[[PeerID, bytes, bytes], bool]
"""(signer, message, signature) -> valid. Pure cores get one passed in."""
