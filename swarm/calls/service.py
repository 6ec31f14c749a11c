"""The server half: one named service that answers the requests of peers."""

from __future__ import annotations

import logging
import math
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
from swarm.calls.guard import Admission, Guard, OverBudgetError, Pace, Pool
from swarm.calls.messages import Answer, Incoming, Refusal
from swarm.calls.rates import UNLIMITED, Rates
from swarm.calls.traffic import Traffic

log = logging.getLogger(__name__)

HELLO_LIMITS: Final = Limits(header_bytes_max=HELLO_HEADER_BYTES_MAX)
"""Of the first frame, whatever kind it says it is: it is read before anybody has been let in."""
LINGER_S: Final = 2.0
"""How long a refused peer has to read the reason, and to notice that we do not want the rest of its frame."""

STRANGER_S: Final = 10.0
"""How long a stream is served on which nobody has to prove anything: long enough for a question or two."""
_TOO_MANY: Final = ErrorReply(code="busy", reason="too many streams", retry_after_s=1.0)

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
        for_anybody: bool = False,
        answer_s_max: float = 300.0,
        idle_s_max: float = 300.0,
    ) -> None:
        """
        Args:
          guard: the node's one Guard, so that its limits hold over all services together.
          answer_s_max: an `answer` that takes longer is cancelled and reported as our failure.
          limits: of what this service sends and receives, as far as `limits_for` does not say otherwise.
          limits_for: what one peer may send in one frame, asked anew for each.
          for_anybody: `accept` proves nothing: the streams of this service stay those of strangers.
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
        self._for_anybody = for_anybody
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
        admission = self._guard.admit_stream(peer, stream.origin)
        if admission is None:
            await self._turn_away(channel)
            return
        self._traffic.streams_opened += 1
        self._streams_open += 1
        try:
            refusal = await self._serve_requests(channel, admission)
            if refusal is not None:
                await self._hang_up(channel, refusal)
        finally:
            self._streams_open -= 1
            self._guard.release_stream(admission)
            await channel.aclose()

    async def _serve_requests(self, channel: Channel, admission: Admission) -> ErrorReply | None:
        """Serve until the stream ends; return what to say when it is the peer's fault.

        By the time that is said the error is gone, and with its traceback what the peer had sent.
        """
        try:
            hello = await self._greet(channel, admission)
            # Where nobody has to prove anything, a stranger stays one, and is served for a moment.
            until_s = STRANGER_S if self._for_anybody else math.inf
            with trio.move_on_after(until_s):
                while hello is not None and await self._serve_request(channel, hello):
                    pass
        except StreamClosedError:
            log.debug("stream ended: peer=%s service=%s", channel.peer, self._name)
        except RemoteProtocolError as error:
            self._guard.fault(channel.peer, error)
            return ErrorReply(code="bad-request", reason=error.reason[:500])
        return None

    async def _greet(self, channel: Channel, admission: Admission) -> Hello | None:
        """Read the HELLO and answer it; None when the stream was refused."""
        stranger = admission.pool is Pool.STRANGERS
        seconds = min(
            self._pace.grace_s, self._guard.limits.stranger_s_max if stranger else math.inf
        )
        with trio.move_on_after(seconds) as scope:
            head = await channel.receive_head(lambda: HELLO_LIMITS)
        if scope.cancelled_caught:
            raise RemoteProtocolError("a stream was opened and nothing said on it", channel.peer)
        if head.kind is not FrameKind.HELLO or head.prefix.body_bytes:
            raise RemoteProtocolError(
                f"a {head.kind.name} frame where a HELLO was due", channel.peer
            )
        hello = decode_hello_untrusted(head.message)
        refusal = hello if isinstance(hello, ErrorReply) else self._accept(channel.peer, hello)
        if refusal is None and not (self._for_anybody or self._guard.accept_stream(admission)):
            refusal = _TOO_MANY
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
        with trio.move_on_after(0.1), suppress(StreamClosedError, RemoteProtocolError):
            await channel.send(FrameKind.ERROR, encode(_TOO_MANY))
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
