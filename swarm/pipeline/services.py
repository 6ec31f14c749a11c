"""One node's place in a pipeline run on the wire: its services, and the peer that answers them.

The services are registered with the host once and stay, because other members keep their streams to us open: when the
peer behind them fails and is made anew, the same streams reach the new one.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocols.frames import DTYPE_BYTES, Limits
from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID
from protocols.ports import Host
from protocols.replies import ErrorReply, Hello
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.calls import Answer, Caller, Guard, Incoming, Rates, Refusal, Service
from swarm.calls.service import AnswerRequest
from swarm.hosting.compute import ComputeThread, torch_threads
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.peer import LEDGER_SERVICE, PipelinePeer
from swarm.pipeline.reduction import REDUCE_SERVICE
from swarm.pipeline.rumours import Rumours
from swarm.pipeline.trainer_shell import STAGE_SERVICE
from swarm.pipeline.transfer import STATE_SERVICE

_COMPUTE_QUEUE: Final = 64
_CODEC_QUEUE: Final = 1024
_JOINED_MICROBATCHES: Final = 4
"""Computed in one go when they wait; more would make the first of them wait too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What a volunteer decides about the part this node takes."""

    founder: bool = False
    """Create the run instead of joining it."""
    observer: bool = False
    """Host nothing; only train."""
    stage: int | None = None
    """The stage we would like to host; None leaves it to the lead."""
    in_flight: int = 4
    """Microbatches our trainer works on at once."""
    threads: int = 1
    nice: int = 0


@dataclass(frozen=True, slots=True)
class OpenPeer:
    """A peer that takes part, and what it works with."""

    peer: PipelinePeer
    caller: Caller
    compute: ComputeThread
    codec: ComputeThread


class RunServices:
    """The services `ledger`, `stage`, `reduce` and `state` of one run on one host."""

    def __init__(
        self, host: Host, run: RunSpec, *, run_key: bytes | None, guard: Guard, rates: Rates
    ) -> None:
        self._host = host
        self._run = run
        self._run_key = run_key
        self._guard = guard
        self._rates = rates
        self._limits = limits_of(run)
        self._registered = False
        self._peer: PipelinePeer | None = None

    @asynccontextmanager
    async def open_peer(
        self, options: PeerOptions, *, rng: random.Random, hooks: PeerHooks
    ) -> AsyncIterator[OpenPeer]:
        """Make a peer and let it take part until the block ends."""
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            compute = await stack.enter_async_context(
                ComputeThread(
                    "compute",
                    prepare=torch_threads(options.threads),
                    nice=options.nice,
                    queue_max=_COMPUTE_QUEUE,
                    batch_max=_JOINED_MICROBATCHES,
                )
            )
            codec = await stack.enter_async_context(
                ComputeThread("codec", nice=options.nice, queue_max=_CODEC_QUEUE)
            )
            caller = Caller(
                self._host,
                hello=Hello(run=self._run.run_id),
                limits=self._limits,
                run_key=self._run_key,
                guard=self._guard,
                rates=self._rates,
            )
            await nursery.start(caller.run)
            peer = PipelinePeer(
                self._run,
                self._host.peer_id,
                caller,
                self._guard,
                compute,
                codec,
                rng=rng,
                hooks=hooks,
                founder=options.founder,
                observer=options.observer,
                stage=options.stage,
                in_flight=options.in_flight,
            )
            self._peer = peer
            try:
                await self._register()
                await nursery.start(peer.run)
                rumours = Rumours(
                    self._host, self._run.run_id, self._guard, heard=peer.rumour_heard
                )
                peer.on_rumour = rumours.spread
                nursery.start_soon(rumours.run)
                yield OpenPeer(peer, caller, compute, codec)
            finally:
                self._peer = None
                nursery.cancel_scope.cancel()

    async def _register(self) -> None:
        if self._registered:
            return
        self._registered = True
        answers: dict[str, Callable[[PipelinePeer], AnswerRequest]] = {
            LEDGER_SERVICE: lambda peer: peer.answer_ledger,
            STAGE_SERVICE: lambda peer: peer.answer_stage,
            REDUCE_SERVICE: lambda peer: peer.reduction.answer,
            STATE_SERVICE: lambda peer: peer.snapshots.answer,
        }
        for name, answer_of in answers.items():
            await Service(
                self._host,
                name,
                answer=self._answerer(answer_of),
                accept=self._acceptor(name),
                limits=self._limits,
                limits_for=functools.partial(self._limits_for, name),
                guard=self._guard,
                rates=self._rates,
            ).start()

    def _limits_for(self, name: str, peer: PeerID) -> Limits:
        """Bound what one peer may send us: tensors come with work only, long headers are records, from who decides them."""
        if name == STAGE_SERVICE:
            return dataclasses.replace(self._limits, header_bytes_max=SHORT_HEADER_BYTES)
        known = name == LEDGER_SERVICE and self._peer is not None and self._peer.knows(peer)
        header_bytes_max = self._limits.header_bytes_max if known else SHORT_HEADER_BYTES
        return Limits(header_bytes_max=header_bytes_max, body_bytes_max=0, tensors_max=0)

    def _answerer(self, answer_of: Callable[[PipelinePeer], AnswerRequest]) -> AnswerRequest:
        async def answer(incoming: Incoming) -> Answer:
            if self._peer is None:
                raise Refusal("busy", "this node is starting its part of the run again", 1.0)
            return await answer_of(self._peer)(incoming)

        return answer

    def _acceptor(self, name: str) -> Callable[[PeerID, Hello], ErrorReply | None]:
        def accept(peer: PeerID, hello: Hello) -> ErrorReply | None:
            return check_hello(
                hello,
                run=self._run.run_id,
                run_key=self._run_key,
                protocol=protocol_of(name),
                opener=peer,
                server=self._host.peer_id,
            )

        return accept


SHORT_HEADER_BYTES: Final = 64 * 1024
"""Calls, and whatever strangers have to say."""


def limits_of(run: RunSpec) -> Limits:
    """Bound frames by what this run can need: two activations of a microbatch, or a part of a stage's gradient."""
    pipeline = pipeline_of(run)
    model = pipeline.model
    activation = pipeline.sequences * model.context * model.width * DTYPE_BYTES[model.dtype]
    return Limits(
        header_bytes_max=4 * 1024 * 1024,
        body_bytes_max=max(2 * activation + (1 << 20), 256 * 1024 * 1024),
        tensors_max=4,
    )
