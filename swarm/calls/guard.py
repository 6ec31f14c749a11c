"""What peers may cost this node: streams, bytes in flight, and how slowly they may send.

One Guard serves all services of a node, so that the bounds hold over all of them together. A peer over its byte
budget is not refused but not read either: libp2p's own back-pressure then stops it, and only it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID

log = logging.getLogger(__name__)

_FAULTY_PEERS_MAX: Final = 4096
"""Peers remembered with their fault counts. An attacker with more identities than this only displaces old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow a peer may be in the middle of a frame. Waiting between frames is not slowness."""

    grace_s: float = 10.0
    """For a prefix and header, and on top of every slice of a body: covers a hiccup of a home connection."""
    rate_min: float = 16 * 1024
    """Bytes per second. A modem of 1998 is slower; nothing that trains is."""
    slice_bytes: int = 1 << 20
    """A body is timed in slices of this size, so a stalled 256 MB body is noticed after one slice, not at its end."""

    def seconds_for(self, byte_count: int) -> float:
        return self.grace_s + byte_count / self.rate_min


UNHURRIED: Final = Pace(grace_s=math.inf)
"""For a caller: its own deadline bounds every call, and a peer that does not read just now may be busy, not hostile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """What one peer, and all together, may hold open or in memory on this node."""

    streams_per_peer_max: int = 64
    """A Caller keeps at most 16 plus one per service it casts to; the rest is room for the restart of a peer."""
    streams_max: int = 768
    """Each is a file descriptor here and one in p2pd; the usual soft limit is 1,024."""
    bytes_per_peer_max: int = 256 * 1024 * 1024
    """At least one largest body (`Limits.body_bytes_max`), or that body could never be received."""
    bytes_max: int = 1024 * 1024 * 1024
    wait_s_max: float = 30.0
    """How long a body may wait for room before its sender is told "busy"."""


class OverBudgetError(Exception):
    """There was no room for a body within `wait_s_max`."""


class Guard:
    """Counts what every peer costs and says no. One per node; used from the event loop only."""

    def __init__(self, limits: GuardLimits | None = None) -> None:
        self.limits = limits or GuardLimits()
        self._streams: Counter[PeerID] = Counter()
        self._bytes: Counter[PeerID] = Counter()
        self._bytes_total = 0
        self._room = trio.lowlevel.ParkingLot()
        self._faults: dict[PeerID, int] = {}
        self.streams_refused = 0

    def admit_stream(self, peer: PeerID) -> bool:
        """Count one more stream from `peer`, or refuse it. Every admitted one is given back by `release_stream`."""
        full = self._streams.total() >= self.limits.streams_max
        if full or self._streams[peer] >= self.limits.streams_per_peer_max:
            self.streams_refused += 1
            return False
        self._streams[peer] += 1
        return True

    def release_stream(self, peer: PeerID) -> None:
        self._streams[peer] -= 1
        if not self._streams[peer]:
            del self._streams[peer]

    @asynccontextmanager
    async def room_for(self, peer: PeerID, byte_count: int) -> AsyncIterator[None]:
        """Hold `byte_count` bytes of the budget, waiting for room first.

        Raises:
          RemoteProtocolError: one body is over the peer's whole budget.
          OverBudgetError: no room within `wait_s_max`.
        """
        await self._reserve(peer, byte_count)
        try:
            yield
        finally:
            self._free(peer, byte_count)

    async def _reserve(self, peer: PeerID, byte_count: int) -> None:
        if byte_count > min(self.limits.bytes_per_peer_max, self.limits.bytes_max):
            raise RemoteProtocolError(
                f"a body of {byte_count} bytes is over this node's budget for one peer", peer
            )
        if not self._fits(peer, byte_count):
            with trio.move_on_after(self.limits.wait_s_max):
                while not self._fits(peer, byte_count):
                    await self._room.park()
        if not self._fits(peer, byte_count):
            raise OverBudgetError
        self._bytes[peer] += byte_count
        self._bytes_total += byte_count

    def _fits(self, peer: PeerID, byte_count: int) -> bool:
        within_peer = self._bytes[peer] + byte_count <= self.limits.bytes_per_peer_max
        return within_peer and self._bytes_total + byte_count <= self.limits.bytes_max

    def _free(self, peer: PeerID, byte_count: int) -> None:
        self._bytes_total -= byte_count
        self._bytes[peer] -= byte_count
        if not self._bytes[peer]:
            del self._bytes[peer]
        # All of them look again: the first in line may be held up by its own peer's budget, the others not.
        self._room.unpark_all()

    def fault(self, peer: PeerID, error: RemoteProtocolError) -> None:
        """Count one broken rule against a peer. Bans are decided elsewhere, from evidence."""
        count = self._faults.pop(peer, 0) + 1
        self._faults[peer] = count  # at the end: the dict is in order of the last fault
        if len(self._faults) > _FAULTY_PEERS_MAX:
            del self._faults[next(iter(self._faults))]
        # Powers of two only: a peer cannot fill our log by misbehaving faster.
        if count & (count - 1) == 0:
            log.warning(
                "peer broke the protocol: peer=%s times=%d reason=%s", peer, count, error.reason
            )

    @contextmanager
    def blaming(self, peer: PeerID) -> Iterator[None]:
        """Count it against `peer` when what it sent, which the block looks into, breaks the protocol; the error goes on."""
        try:
            yield
        except RemoteProtocolError as error:
            self.fault(peer, error)
            raise

    def faults(self) -> Mapping[PeerID, int]:
        """Return how often each peer broke the protocol since start."""
        return dict(self._faults)

    @property
    def streams_open(self) -> int:
        return self._streams.total()

    @property
    def bytes_held(self) -> int:
        return self._bytes_total
