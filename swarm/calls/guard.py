"""What peers may cost this node: streams, bytes in flight, and how slowly they may send.

One Guard serves all services of a node, so that the bounds hold over all of them together. A peer over its byte
budget is not refused but not read either: libp2p's own back-pressure then stops it, and only it.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
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
    """What one peer, and all together, may hold open or in memory on this node.

    Streams come out of three pools, so that whoever fills one takes nothing from the others. Each stream is a file descriptor
    here and one in p2pd; the usual soft limit is 1,024.
    """

    streams_per_peer_max: int = 64
    """A Caller keeps at most 16 plus one per service it casts to; the rest is room for the restart of a peer."""
    counted_on_max: int = 384
    """Streams of peers that this node counts on, or has given work to (`Guard.counts_on`)."""
    accepted_max: int = 256
    """Streams of peers whose first frame was in order: they know the run, and its key if it has one."""
    strangers_max: int = 128
    """Streams of all others: of whoever has said nothing yet, and of those that only ask for the public status."""
    strangers_per_origin_max: int = 32
    """Of these, from one address: identities cost nothing, addresses do."""
    stranger_s_max: float = 5.0
    """How long a stranger may take for its first frame."""
    bytes_per_peer_max: int = 256 * 1024 * 1024
    """At least one largest body (`Limits.body_bytes_max`), or that body could never be received."""
    bytes_max: int = 1024 * 1024 * 1024
    wait_s_max: float = 30.0
    """How long a body may wait for room before its sender is told "busy"."""


class OverBudgetError(Exception):
    """There was no room for a body within `wait_s_max`."""


class Pool(enum.Enum):
    """Whose streams count together."""

    COUNTED_ON = enum.auto()
    ACCEPTED = enum.auto()
    STRANGERS = enum.auto()


@dataclass(slots=True, eq=False)
class Admission:
    """One open stream's place; give it back with `Guard.release_stream`."""

    peer: PeerID
    origin: str
    pool: Pool


class Guard:
    """Counts what every peer costs and says no. One per node; used from the event loop only."""

    def __init__(self, limits: GuardLimits | None = None) -> None:
        self.limits = limits or GuardLimits()
        self.counts_on: Callable[[PeerID], bool] = lambda peer: False
        """Whether the run takes this peer for one of its own; the mode sets it."""
        self._admitted: set[Admission] = set()
        self._streams: Counter[PeerID] = Counter()
        self._in_pool: Counter[Pool] = Counter()
        self._strangers: Counter[str] = Counter()
        """Streams in the third pool, by origin."""
        self._bytes: Counter[PeerID] = Counter()
        self._bytes_total = 0
        self._room = trio.lowlevel.ParkingLot()
        self._faults: dict[PeerID, int] = {}
        self.streams_refused = 0

    def admit_stream(self, peer: PeerID, origin: str) -> Admission | None:
        """Count one more stream, or refuse it. What is admitted is given back by `release_stream`.

        Args:
          origin: where it comes from, as coarsely as addresses are given out (`Stream.origin`).
        """
        pool = Pool.COUNTED_ON if self.counts_on(peer) else Pool.STRANGERS
        strangers = self._strangers[origin] if pool is Pool.STRANGERS else 0
        if (
            self._streams[peer] >= self.limits.streams_per_peer_max
            or strangers >= self.limits.strangers_per_origin_max
            or not self._has_room(pool)
        ):
            self.streams_refused += 1
            return None
        admission = Admission(peer, origin, pool)
        self._admitted.add(admission)
        self._streams[peer] += 1
        self._enter(admission, pool)
        return admission

    def accept_stream(self, admission: Admission) -> bool:
        """Its first frame is in order: the stream is no stranger's any more. False when there is no room for it."""
        if admission.pool is not Pool.STRANGERS:
            return True
        pool = Pool.COUNTED_ON if self.counts_on(admission.peer) else Pool.ACCEPTED
        if not self._has_room(pool):
            self.streams_refused += 1
            return False
        self._leave(admission)
        self._enter(admission, pool)
        return True

    def release_stream(self, admission: Admission) -> None:
        self._admitted.remove(admission)
        self._leave(admission)
        self._streams[admission.peer] -= 1
        if not self._streams[admission.peer]:
            del self._streams[admission.peer]

    def _has_room(self, pool: Pool) -> bool:
        limits = {
            Pool.COUNTED_ON: self.limits.counted_on_max,
            Pool.ACCEPTED: self.limits.accepted_max,
            Pool.STRANGERS: self.limits.strangers_max,
        }
        if self._in_pool[pool] >= limits[pool]:
            self._sort_anew()
        return self._in_pool[pool] < limits[pool]

    def _sort_anew(self) -> None:
        """Streams stay open for long: their peers may be counted on by now, or not any more."""
        for admission in self._admitted:
            if admission.pool is Pool.STRANGERS:
                continue
            pool = Pool.COUNTED_ON if self.counts_on(admission.peer) else Pool.ACCEPTED
            if pool is not admission.pool:
                self._leave(admission)
                self._enter(admission, pool)

    def _enter(self, admission: Admission, pool: Pool) -> None:
        admission.pool = pool
        self._in_pool[pool] += 1
        if pool is Pool.STRANGERS:
            self._strangers[admission.origin] += 1

    def _leave(self, admission: Admission) -> None:
        self._in_pool[admission.pool] -= 1
        if admission.pool is Pool.STRANGERS:
            self._strangers[admission.origin] -= 1
            if not self._strangers[admission.origin]:
                del self._strangers[admission.origin]

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
        return len(self._admitted)

    @property
    def bytes_held(self) -> int:
        return self._bytes_total
