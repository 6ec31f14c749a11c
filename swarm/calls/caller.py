"""The client half: calls that get one answer, and casts that get none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from protocols.errors import RemoteProtocolError
from protocols.frames import FrameKind, Limits, encode_frame
from protocols.handshake import (
    decode_error_reply_untrusted,
    decode_welcome_untrusted,
    protocol_of,
    with_proof,
)
from protocols.ids import PeerID
from protocols.ports import Host, StreamClosedError
from protocols.replies import Hello
from protocols.schema import encode
from swarm.calls.casts import Outboxes
from swarm.calls.channel import SMALL_BYTES, Channel, FrameHead
from swarm.calls.guard import UNHURRIED, Guard
from swarm.calls.messages import Answer, CallError, CallTimeoutError, WireTensor
from swarm.calls.pool import ChannelPool, PooledChannel
from swarm.calls.rates import UNLIMITED, Rates
from swarm.calls.traffic import Traffic, TrafficTable

if TYPE_CHECKING:
    # trio-typing comes with libp2p and hides trio's own annotations, which have no TaskStatus for mypy then.
    from trio_typing import TaskStatus

_SWEEP_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerStatistics:
    """What this node asked of others since it started."""

    services: Mapping[str, Traffic]
    streams_open: int
    casts_waiting: int


class Caller:
    """Calls services of peers in the name of one Hello. Used from the event loop only.

    Calls work at once; casts need `run` to be running in a nursery.
    """

    def __init__(
        self,
        host: Host,
        *,
        hello: Hello,
        limits: Limits | None = None,
        run_key: bytes | None = None,
        guard: Guard | None = None,
        rates: Rates = UNLIMITED,
        streams_per_peer_max: int = 16,
        idle_s_max: float = 60.0,
        casts_waiting_max: int = 256,
    ) -> None:
        """
        Args:
          hello: says which run we belong to; its `proof` is filled in for every stream when there is a `run_key`.
          guard: where peers that break the protocol are counted; the node's one Guard.
          idle_s_max: an unused stream is closed after this; must be shorter than the services' own limit.
          casts_waiting_max: per peer and service; further casts are dropped and counted.
        """
        self._host = host
        self._hello = hello
        self._run_key = run_key
        self._limits = limits or Limits()
        self.guard = guard or Guard()
        """Where those who read our answers count what is wrong with them."""
        self._rates = rates
        self._traffic = TrafficTable()
        self._pool = ChannelPool(
            self._open_channel, streams_per_peer_max=streams_per_peer_max, idle_s_max=idle_s_max
        )
        self._outboxes = Outboxes(
            self._cast_over,
            self._traffic,
            waiting_max=casts_waiting_max,
            idle_s_max=idle_s_max,
            unreachable=lambda peer: self.on_unreachable(peer),
        )
        self.on_unreachable: Callable[[PeerID], None] = lambda peer: None
        """Told of peers that casts could not reach; whoever decides about peers sets it."""

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send casts and close idle streams until cancelled. `await nursery.start(caller.run)`."""
        try:
            async with trio.open_nursery() as nursery:
                self._outboxes.open(nursery)
                task_status.started()
                try:
                    while True:
                        await trio.sleep(_SWEEP_S)
                        await self._pool.close_idle()
                finally:
                    self._outboxes.close()  # first: nothing can be sent from a nursery that is ending
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the streams that no call uses. `run` does it at its end."""
        await self._pool.close_idle(older_than_s=-1.0)

    async def call(
        self,
        peer: PeerID,
        service: str,
        message: Any,
        tensors: Sequence[WireTensor] = (),
        *,
        deadline_s: float,
        into: Sequence[memoryview] = (),
    ) -> Answer:
        """Ask one peer and wait for its answer, at most `deadline_s` seconds from now.

        The tensors' memory must not change until this returns or raises.

        Args:
          into: where the tensors of the answer are received; one of another size breaks the protocol. Nothing: new memory.

        Raises:
          CallError: the peer said no, or this stream was refused.
          CallTimeoutError: no answer in time; whether the request was carried out is unknown.
          StreamClosedError: the stream broke before the answer came; likewise unknown.
          PeerUnreachableError: no stream could be opened; the request was not carried out.
          RemoteProtocolError: the answer broke the protocol; counted against the peer already.
        """
        traffic = self._traffic.of(service)
        traffic.calls += 1
        try:
            with trio.fail_after(deadline_s):
                return await self._call(peer, service, message, tensors, into)
        except trio.TooSlowError as error:
            traffic.failures += 1
            raise CallTimeoutError(peer, service, deadline_s) from error
        except RemoteProtocolError as error:
            traffic.failures += 1
            self.guard.fault(peer, error)
            raise
        except Exception:
            traffic.failures += 1
            raise

    async def cast(self, peer: PeerID, service: str, message: Any) -> None:
        """Send one message that gets no answer. Never waits for the network.

        Casts to one (peer, service) arrive in order, or not at all: when the peer does not read, or cannot be reached,
        they are dropped and counted.
        """
        self.cast_nowait(peer, service, message)
        await trio.lowlevel.checkpoint()

    def cast_nowait(self, peer: PeerID, service: str, message: Any) -> None:
        """Like `cast`, from a function that is not async. `message` is plain data or a dataclass."""
        self._outboxes.put(peer, service, encode(message))

    def statistics(self) -> CallerStatistics:
        return CallerStatistics(
            services=self._traffic.snapshot(),
            streams_open=self._pool.streams_open,
            casts_waiting=self._outboxes.waiting,
        )

    async def _call(
        self,
        peer: PeerID,
        service: str,
        message: Any,
        tensors: Sequence[WireTensor],
        into: Sequence[memoryview],
    ) -> Answer:
        pooled = await self._send_request(peer, service, message, tensors)
        try:
            answer = await self._receive_answer(pooled, into)
        except _RefusedRequest as refused:
            self._pool.give_back(pooled)
            raise refused.error from None
        except BaseException:
            await self._pool.discard(pooled)
            raise
        self._pool.give_back(pooled)
        return answer

    async def _send_request(
        self, peer: PeerID, service: str, message: Any, tensors: Sequence[WireTensor]
    ) -> PooledChannel:
        """Send a request on a channel that is taken for it, and return that."""
        for fresh in (False, True):
            pooled = await self._pool.take(peer, service, fresh=fresh)
            try:
                await self._send(pooled, FrameKind.REQUEST, message, tensors)
                return pooled
            except BaseException as error:
                await self._pool.discard(pooled)
                # An old stream whose peer restarted: what was not sent whole was not carried out, so it can be
                # sent again.
                if not (pooled.reused and isinstance(error, StreamClosedError)):
                    raise
        raise AssertionError("a fresh channel is never a reused one")

    async def _send(
        self,
        pooled: PooledChannel,
        kind: FrameKind,
        message: Any,
        tensors: Sequence[WireTensor] = (),
    ) -> None:
        """Send a frame, on a new stream together with our HELLO.

        A large body waits for the welcome: being refused then costs a round trip and not an upload.
        """
        lead, pooled.lead = pooled.lead, b""
        if lead and sum(tensor.data.nbytes for tensor in tensors) > SMALL_BYTES:
            await pooled.channel.send_raw(lead)
            await self._receive_welcome(pooled)
            lead = b""
        await pooled.channel.send(kind, message, tensors, lead=lead)

    async def _receive_answer(self, pooled: PooledChannel, into: Sequence[memoryview]) -> Answer:
        await self._receive_welcome(pooled)
        head = await pooled.channel.receive_head()
        if head.kind is FrameKind.ERROR:
            error = _call_error(pooled.peer, head)
            if error.code == "bad-request":
                raise error  # the peer cannot tell any more where our next frame begins
            raise _RefusedRequest(error)
        if head.kind is not FrameKind.REPLY:
            raise RemoteProtocolError(
                f"a {head.kind.name} frame where a REPLY was due", pooled.peer
            )
        return Answer(head.message, await pooled.channel.receive_body(head, into))

    async def _receive_welcome(self, pooled: PooledChannel) -> None:
        """Read what the peer says to our HELLO, once per stream."""
        if pooled.welcomed:
            return
        head = await pooled.channel.receive_head()
        if head.kind is FrameKind.ERROR:
            raise _call_error(pooled.peer, head)
        if head.kind is not FrameKind.HELLO or head.prefix.body_bytes:
            raise RemoteProtocolError(
                f"a {head.kind.name} frame where a welcome was due", pooled.peer
            )
        try:
            decode_welcome_untrusted(head.message)
        except RemoteProtocolError as error:
            raise error.blaming(pooled.peer) from error
        pooled.welcomed = True

    async def _cast_over(
        self, pooled: PooledChannel | None, peer: PeerID, service: str, message: Any
    ) -> PooledChannel:
        """Send one cast over the outbox's own channel, which is opened first when it has none."""
        if pooled is not None and not pooled.channel.readable():
            await self._send(pooled, FrameKind.CAST, message)
            return pooled
        if pooled is not None:
            await pooled.channel.aclose()
        pooled = await self._open_channel(peer, service)
        try:
            with self.guard.blaming(peer):
                await self._send(pooled, FrameKind.CAST, message)
                await self._receive_welcome(pooled)
        except BaseException:
            await pooled.channel.aclose()
            raise
        return pooled

    async def _open_channel(self, peer: PeerID, service: str) -> PooledChannel:
        protocol = protocol_of(service)
        stream = await self._host.open_stream(peer, protocol)
        traffic = self._traffic.of(service)
        traffic.streams_opened += 1
        channel = Channel(
            stream, limits=self._limits, pace=UNHURRIED, traffic=traffic, rates=self._rates
        )
        hello = with_proof(
            self._hello, self._run_key, protocol=protocol, opener=self._host.peer_id, server=peer
        )
        return PooledChannel(
            peer, service, channel, lead=encode_frame(FrameKind.HELLO, encode(hello))
        )


class _RefusedRequest(Exception):
    """The peer refused this request, not the stream: the channel stays good for the next."""

    def __init__(self, error: CallError) -> None:
        super().__init__()
        self.error = error


def _call_error(peer: PeerID, head: FrameHead) -> CallError:
    if head.prefix.body_bytes:
        raise RemoteProtocolError("an ERROR frame has no body", peer)
    try:
        reply = decode_error_reply_untrusted(head.message)
    except RemoteProtocolError as error:
        raise error.blaming(peer) from error
    return CallError(peer, reply.code, reply.reason, reply.retry_after_s)
