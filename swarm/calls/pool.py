"""Streams kept open for reuse: opening one costs milliseconds, a small call less than one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from protocols.ids import PeerID
from swarm.calls.channel import Channel


@dataclass(slots=True)
class PooledChannel:
    """One open channel to a peer's service, taken by one call at a time."""

    peer: PeerID
    service: str
    channel: Channel
    lead: bytes = b""
    """The HELLO, until it has been sent in front of the first request."""
    welcomed: bool = False
    reused: bool = False
    idle_since_s: float = 0.0


@dataclass(slots=True)
class _PeerStreams:
    """All streams to one peer, over all services."""

    count: int = 0
    idle: list[PooledChannel] = field(default_factory=list)
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class ChannelPool:
    """Idle and busy channels by peer. At most `streams_per_peer_max` to one peer; who comes later waits its turn."""

    def __init__(
        self,
        open_channel: Callable[[PeerID, str], Awaitable[PooledChannel]],
        *,
        streams_per_peer_max: int,
        idle_s_max: float,
    ) -> None:
        self._open_channel = open_channel
        self._streams_per_peer_max = streams_per_peer_max
        self._idle_s_max = idle_s_max
        self._peers: dict[PeerID, _PeerStreams] = {}

    @property
    def streams_open(self) -> int:
        return sum(streams.count for streams in self._peers.values())

    async def take(self, peer: PeerID, service: str, *, fresh: bool = False) -> PooledChannel:
        """Return a channel that no other call uses, opening one when none is idle. Raises PeerUnreachableError.

        Every channel taken is given to `give_back` or `discard`.
        """
        while True:
            streams = self._peers.setdefault(peer, _PeerStreams())
            pooled = None if fresh else _pop_idle(streams, service)
            if pooled is not None:
                if self._is_usable(pooled):
                    pooled.reused = True
                    return pooled
                await self.discard(pooled)
            elif streams.count < self._streams_per_peer_max:
                return await self._open(peer, service, streams)
            elif streams.idle:
                await self.discard(streams.idle.pop(0))
            else:
                await streams.waiting.park()

    def give_back(self, pooled: PooledChannel) -> None:
        """Keep a channel whose last call was answered in full."""
        streams = self._peers[pooled.peer]
        pooled.idle_since_s = trio.current_time()
        streams.idle.append(pooled)
        streams.waiting.unpark()

    async def discard(self, pooled: PooledChannel) -> None:
        """Close a channel that was taken."""
        self._forget_one(pooled.peer)
        await pooled.channel.aclose()

    async def close_idle(self, *, older_than_s: float | None = None) -> None:
        """Close the channels that have been idle for longer than that (or than the pool's own limit)."""
        limit_s = self._idle_s_max if older_than_s is None else older_than_s
        cutoff_s = trio.current_time() - limit_s
        for streams in list(self._peers.values()):
            old = [pooled for pooled in streams.idle if pooled.idle_since_s <= cutoff_s]
            streams.idle = [pooled for pooled in streams.idle if pooled.idle_since_s > cutoff_s]
            for pooled in old:
                await self.discard(pooled)

    async def _open(self, peer: PeerID, service: str, streams: _PeerStreams) -> PooledChannel:
        streams.count += 1
        try:
            return await self._open_channel(peer, service)
        except BaseException:
            self._forget_one(peer)
            raise

    def _is_usable(self, pooled: PooledChannel) -> bool:
        young = trio.current_time() - pooled.idle_since_s < self._idle_s_max
        return young and not pooled.channel.readable()

    def _forget_one(self, peer: PeerID) -> None:
        streams = self._peers[peer]
        streams.count -= 1
        streams.waiting.unpark()
        if not streams.count and not streams.waiting:
            del self._peers[peer]


def _pop_idle(streams: _PeerStreams, service: str) -> PooledChannel | None:
    """Take the one used last: the others can grow old and be closed."""
    for index in range(len(streams.idle) - 1, -1, -1):
        if streams.idle[index].service == service:
            return streams.idle.pop(index)
    return None
