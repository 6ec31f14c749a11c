"""The services of one run on one host.

They are registered with the host once and stay, because other members keep their streams to us open: when the mode behind
them fails and is started again, the same streams reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocols.frames import Limits
from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID, RunID
from protocols.ports import Host
from protocols.replies import ErrorReply, Hello
from swarm.calls import Answer, Incoming, Refusal, Service

if TYPE_CHECKING:
    from swarm.calls import Guard, Rates
    from swarm.calls.service import AnswerRequest


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one service."""

    answer: AnswerRequest
    limits_for: Callable[[PeerID], Limits] | None = None
    """What one peer may send in one frame; None takes the mode's limits."""


class Endpoints:
    """Answers peers of one run with whatever is open just now, and "busy" in between."""

    def __init__(
        self,
        host: Host,
        run: RunID,
        *,
        run_key: bytes | None,
        guard: Guard,
        rates: Rates,
        limits: Limits,
    ) -> None:
        self._host = host
        self._run = run
        self._run_key = run_key
        self._guard = guard
        self._rates = rates
        self._limits = limits
        self._open: Mapping[str, Endpoint] = {}
        self._registered: set[str] = set()

    async def open(self, wire: Mapping[str, Endpoint]) -> None:
        """Answer with these from now on."""
        self._open = wire
        for name in wire.keys() - self._registered:
            self._registered.add(name)
            await Service(
                self._host,
                name,
                answer=self._answerer(name),
                accept=self._acceptor(name),
                limits=self._limits,
                limits_for=self._limiter(name),
                guard=self._guard,
                rates=self._rates,
            ).start()

    def close(self) -> None:
        """Answer "busy" until the next `open`."""
        self._open = {}

    def _answerer(self, name: str) -> AnswerRequest:
        async def answer(incoming: Incoming) -> Answer:
            endpoint = self._open.get(name)
            if endpoint is None:
                raise Refusal("busy", "this node is starting its part of the run again", 1.0)
            return await endpoint.answer(incoming)

        return answer

    def _limiter(self, name: str) -> Callable[[PeerID], Limits]:
        def limits_for(peer: PeerID) -> Limits:
            endpoint = self._open.get(name)
            if endpoint is None or endpoint.limits_for is None:
                return self._limits
            return endpoint.limits_for(peer)

        return limits_for

    def _acceptor(self, name: str) -> Callable[[PeerID, Hello], ErrorReply | None]:
        def accept(peer: PeerID, hello: Hello) -> ErrorReply | None:
            return check_hello(
                hello,
                run=self._run,
                run_key=self._run_key,
                protocol=protocol_of(name),
                opener=peer,
                server=self._host.peer_id,
            )

        return accept
