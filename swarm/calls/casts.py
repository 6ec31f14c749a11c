"""Casts on their way out: one bounded queue and one stream per (peer, service), so that they arrive in order."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerID
from protocols.ports import PeerUnreachableError, StreamClosedError
from swarm.calls.messages import CallError
from swarm.calls.pool import PooledChannel
from swarm.calls.traffic import TrafficTable

log = logging.getLogger(__name__)

_PROBLEMS_KEPT: Final = 1024
"""Last reasons remembered, so that a repeated one is not logged again."""

CastOver = Callable[[PooledChannel | None, PeerID, str, Any], Awaitable[PooledChannel]]
"""(channel so far, peer, service, message) -> channel from now on."""


class Outboxes:
    """All queues of one Caller. A queue lives while it has casts, and `idle_s_max` longer with its stream."""

    def __init__(
        self,
        cast_over: CastOver,
        traffic: TrafficTable,
        *,
        waiting_max: int,
        idle_s_max: float,
        send_s_max: float = 20.0,
        unreachable: Callable[[PeerID], None] = lambda peer: None,
    ) -> None:
        """
        Args:
          unreachable: told of a peer to which no stream could be opened.
          send_s_max: a cast that is not taken by then is dropped, with those behind it.
        """
        self._cast_over = cast_over
        self._traffic = traffic
        self._waiting_max = waiting_max
        self._idle_s_max = idle_s_max
        self._send_s_max = send_s_max
        self._unreachable = unreachable
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._queues: dict[tuple[PeerID, str], trio.MemorySendChannel[Any]] = {}
        self._last_problem: dict[tuple[PeerID, str], str] = {}

    @property
    def waiting(self) -> int:
        """Casts queued over all peers."""
        return sum(queue.statistics().current_buffer_used for queue in self._queues.values())

    def open(self, nursery: trio.Nursery) -> None:
        """Start sending from tasks in `nursery`."""
        self._nursery = nursery
        self._closed = False

    def close(self) -> None:
        """Drop what has not been sent, and from now on everything."""
        self._nursery = None
        self._closed = True
        self._queues.clear()

    def put(self, peer: PeerID, service: str, message: Any) -> None:
        """Queue one cast, or drop and count it when the queue is full, or when we are closing."""
        if self._closed:
            self._traffic.of(service).casts_dropped += 1
            return
        if self._nursery is None:
            raise LocalProtocolError("start Caller.run before casting")
        queue = self._queues.get((peer, service))
        if queue is None:
            queue, waiting = trio.open_memory_channel[Any](self._waiting_max)
            self._queues[peer, service] = queue
            self._nursery.start_soon(self._send_all, peer, service, waiting)
        try:
            queue.send_nowait(message)
        except trio.WouldBlock:
            self._drop(peer, service, 1, "the peer does not read fast enough")

    async def _send_all(
        self, peer: PeerID, service: str, waiting: trio.MemoryReceiveChannel[Any]
    ) -> None:
        """Send what is queued, in order, until nothing came for a while."""
        pooled: PooledChannel | None = None
        try:
            while True:
                try:
                    with trio.fail_after(self._idle_s_max):
                        message = await waiting.receive()
                except trio.TooSlowError:
                    if waiting.statistics().current_buffer_used:
                        continue  # one came in the very moment we gave up
                    return
                pooled = await self._send_one(pooled, peer, service, message, waiting)
        finally:
            self._queues.pop((peer, service), None)
            if pooled is not None:
                await pooled.channel.aclose()

    async def _send_one(
        self,
        pooled: PooledChannel | None,
        peer: PeerID,
        service: str,
        message: Any,
        waiting: trio.MemoryReceiveChannel[Any],
    ) -> PooledChannel | None:
        """Send one cast. On failure drop it and those behind it: they are old by the time the peer is back."""
        try:
            with trio.fail_after(self._send_s_max):
                pooled = await self._cast_over(pooled, peer, service, message)
        except trio.TooSlowError:
            problem = "the peer does not read"
        except PeerUnreachableError as error:
            problem = str(error)
            self._unreachable(peer)
        except (CallError, RemoteProtocolError, StreamClosedError) as error:
            problem = str(error)
        else:
            self._traffic.of(service).casts += 1
            self._last_problem.pop((peer, service), None)
            return pooled
        self._drop(peer, service, 1 + _empty(waiting), problem)
        if pooled is not None:
            await pooled.channel.aclose()
        return None

    def _drop(self, peer: PeerID, service: str, count: int, problem: str) -> None:
        self._traffic.of(service).casts_dropped += count
        if self._last_problem.get((peer, service)) == problem:
            return  # a repeating state is logged when its reason changes
        self._last_problem[peer, service] = problem
        if len(self._last_problem) > _PROBLEMS_KEPT:
            del self._last_problem[next(iter(self._last_problem))]
        log.warning(
            "casts dropped: peer=%s service=%s count=%d reason=%s", peer, service, count, problem
        )


def _empty(waiting: trio.MemoryReceiveChannel[Any]) -> int:
    dropped = 0
    while True:
        try:
            waiting.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return dropped
        dropped += 1
