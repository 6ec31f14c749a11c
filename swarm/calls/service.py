"""The server half: one named service that answers the requests of peers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import trio

from protocols.errors import RemoteProtocolError
from protocols.frames import HELLO_HEADER_BYTES_MAX, FrameKind, Limits
from protocols.handshake import decode_hello_untrusted, protocol_of
from protocols.ids import PeerID
from protocols.ports import Host, Stream, StreamClosedError
from protocols.replies import ErrorReply, Hello, Welcome
from protocols.schema import encode
from swarm.calls.channel import Channel, FrameHead
from swarm.calls.guard import Guard, OverBudgetError, Pace
from swarm.calls.messages import Answer, Incoming, Refusal
from swarm.calls.rates import UNLIMITED, Rates
from swarm.calls.traffic import Traffic

log = logging.getLogger(__name__)

HELLO_LIMITS: Final = Limits(header_bytes_max=HELLO_HEADER_BYTES_MAX)
"""Of the first frame, whatever kind it says it is: it is read before anybody has been let in."""
LINGER_S: Final = 2.0
"""How long a refused peer has to read the reason, and to notice that we do not want the rest of its frame."""

AnswerRequest: TypeAlias = Callable[[Incoming], Awaitable[Answer]]
"""May raise Refusal (an ERROR with its code) or RemoteProtocolError ("bad-request", counted against the peer)."""

AcceptHello: TypeAlias = Callable[[PeerID, Hello], ErrorReply | None]
"""None accepts the stream; a reply refuses it. See protocols.handshake.check_hello."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatistics:
    """What peers asked of this service since it started."""

    traffic: Traffic
    streams_open: int


class Service:
    """Serves `/murmura/<name>/1`: one request at a time per stream, any number of streams within the Guard's limits.

    A request whose sender has gone is answered all the same: nobody looks at the stream before the answer is ready.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        *,
        answer: AnswerRequest,
        accept: AcceptHello,
        limits: Limits | None = None,
        guard: Guard | None = None,
        pace: Pace | None = None,
        rates: Rates = UNLIMITED,
        limits_for: Callable[[PeerID], Limits] | None = None,
        answer_s_max: float = 300.0,
        idle_s_max: float = 300.0,
    ) -> None:
        """
        Args:
          guard: the node's one Guard, so that its limits hold over all services together.
          answer_s_max: an `answer` that takes longer is cancelled and reported as our failure.
          limits: of what this service sends and receives, as far as `limits_for` does not say otherwise.
          limits_for: what one peer may send in one frame, asked anew for each.
          idle_s_max: a stream without a request for so long is closed; callers close theirs earlier.
        """
        self._host = host
        self._name = name
        self._answer = answer
        self._accept = accept
        self._limits = limits or Limits()
        self._limits_for = limits_for or (lambda peer: self._limits)
        self._guard = guard or Guard()
        self._pace = pace or Pace()
        self._rates = rates
        self._answer_s_max = answer_s_max
        self._idle_s_max = idle_s_max
        self._traffic = Traffic()
        self._streams_open = 0

    async def start(self) -> None:
        """Begin to serve. The Host keeps serving until it closes; to leave earlier, refuse in `accept` and `answer`."""
        await self._host.serve(protocol_of(self._name), self._serve_stream)

    def statistics(self) -> ServiceStatistics:
        return ServiceStatistics(traffic=replace(self._traffic), streams_open=self._streams_open)

    async def _serve_stream(self, stream: Stream) -> None:
        """Serve one stream to its end; nothing a peer does gets out of here but as a count and a log line."""
        peer = stream.peer
        channel = Channel(
            stream, limits=self._limits, pace=self._pace, traffic=self._traffic, rates=self._rates
        )
        if not self._guard.admit_stream(peer):
            await self._turn_away(channel)
            return
        self._traffic.streams_opened += 1
        self._streams_open += 1
        try:
            refusal = await self._serve_requests(channel)
            if refusal is not None:
                await self._hang_up(channel, refusal)
        finally:
            self._streams_open -= 1
            self._guard.release_stream(peer)
            await channel.aclose()

    async def _serve_requests(self, channel: Channel) -> ErrorReply | None:
        """Serve until the stream ends; return what to say when it is the peer's fault.

        By the time that is said the error is gone, and with its traceback what the peer had sent.
        """
        try:
            hello = await self._greet(channel)
            while hello is not None and await self._serve_request(channel, hello):
                pass
        except StreamClosedError:
            log.debug("stream ended: peer=%s service=%s", channel.peer, self._name)
        except RemoteProtocolError as error:
            self._guard.fault(channel.peer, error)
            return ErrorReply(code="bad-request", reason=error.reason[:500])
        return None

    async def _greet(self, channel: Channel) -> Hello | None:
        """Read the HELLO and answer it; None when the stream was refused."""
        with trio.move_on_after(self._pace.grace_s) as scope:
            head = await channel.receive_head(lambda: HELLO_LIMITS)
        if scope.cancelled_caught:
            raise RemoteProtocolError("a stream was opened and nothing said on it", channel.peer)
        if head.kind is not FrameKind.HELLO or head.prefix.body_bytes:
            raise RemoteProtocolError(
                f"a {head.kind.name} frame where a HELLO was due", channel.peer
            )
        hello = decode_hello_untrusted(head.message)
        refusal = hello if isinstance(hello, ErrorReply) else self._accept(channel.peer, hello)
        if isinstance(hello, Hello) and refusal is None:
            await channel.send(FrameKind.HELLO, encode(Welcome()))
            return hello
        assert refusal is not None
        self._traffic.streams_refused += 1
        count = self._traffic.streams_refused
        if count & (count - 1) == 0:  # powers of two: strangers can cause it as often as they like
            log.info(
                "streams refused: service=%s count=%d last_peer=%s last_code=%s",
                self._name,
                count,
                channel.peer,
                refusal.code,
            )
        await self._hang_up(channel, refusal)
        return None

    async def _serve_request(self, channel: Channel, hello: Hello) -> bool:
        """Serve one REQUEST or CAST. False when the stream is at its end."""
        with trio.move_on_after(self._idle_s_max) as scope:
            head = await channel.receive_head(lambda: self._limits_for(channel.peer))
        if scope.cancelled_caught:
            return False
        if head.kind not in (FrameKind.REQUEST, FrameKind.CAST):
            raise RemoteProtocolError(
                f"a {head.kind.name} frame where a request was due", channel.peer
            )
        try:
            async with self._guard.room_for(channel.peer, head.prefix.body_bytes):
                tensors = await channel.receive_body(head)
                incoming = Incoming(channel.peer, hello, head.message, tensors)
                del tensors
                reply = await self._answer_one(incoming)
                await self._send_reply(channel, head, reply)
        except OverBudgetError:
            await channel.discard_body(head)
            busy = ErrorReply(code="busy", reason="no memory for this body", retry_after_s=5.0)
            await self._send_reply(channel, head, busy)
            return True
        # After a bad request nobody can be sure where the sender's next frame begins.
        return not (isinstance(reply, ErrorReply) and reply.code == "bad-request")

    async def _answer_one(self, incoming: Incoming) -> Answer | ErrorReply:
        try:
            with trio.fail_after(self._answer_s_max):
                return await self._answer(incoming)
        except Refusal as refusal:
            return refusal.reply
        except RemoteProtocolError as error:
            self._guard.fault(incoming.peer, error)
            return ErrorReply(code="bad-request", reason=error.reason[:500])
        except trio.TooSlowError:
            log.error("request took too long: peer=%s service=%s", incoming.peer, self._name)
            return ErrorReply(code="failed", reason="this node took too long")
        except Exception:
            log.exception("request failed: peer=%s service=%s", incoming.peer, self._name)
            return ErrorReply(code="failed", reason="this node failed; its log says why")

    async def _send_reply(
        self, channel: Channel, head: FrameHead, reply: Answer | ErrorReply
    ) -> None:
        if head.kind is FrameKind.CAST:
            self._traffic.casts += 1
            return
        self._traffic.calls += 1
        if isinstance(reply, ErrorReply):
            self._traffic.failures += 1
            await channel.send(FrameKind.ERROR, encode(reply))
        else:
            await channel.send(FrameKind.REPLY, reply.message, reply.tensors)

    async def _turn_away(self, channel: Channel) -> None:
        """Refuse a stream over the limit at once: lingering with a thousand of them is what the limit prevents."""
        reply = ErrorReply(code="busy", reason="too many streams", retry_after_s=1.0)
        with trio.move_on_after(0.1), suppress(StreamClosedError, RemoteProtocolError):
            await channel.send(FrameKind.ERROR, encode(reply))
        await channel.aclose()

    async def _hang_up(self, channel: Channel, reply: ErrorReply) -> None:
        """Say why, give the peer a moment to hear it, and close."""
        with trio.move_on_after(LINGER_S):
            try:
                await channel.send(FrameKind.ERROR, encode(reply))
                await channel.discard_rest()
            except (StreamClosedError, RemoteProtocolError):
                log.debug("peer was gone before it could be told: peer=%s", channel.peer)
        await channel.aclose()
