"""One node's place in a pipeline run on the wire: the peer, and the services that it answers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from protocols.frames import DTYPE_BYTES, Limits
from protocols.ids import PeerID
from protocols.ports import Host, Signer, VerifySignature
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from protocols.state_calls import STATE_SERVICE
from swarm.calls import Guard
from swarm.endpoints import Endpoint
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.peer import LEDGER_SERVICE, PipelinePeer, RestartOptions
from swarm.pipeline.reduction import REDUCE_SERVICE
from swarm.pipeline.reuniting import RESTART_SERVICE, HistoryEndsError
from swarm.pipeline.rumours import Rumours
from swarm.pipeline.trainer_shell import STAGE_SERVICE
from swarm.resources import Resources
from swarm.state.initial import InitialState
from swarm.state.start_calls import START_SERVICE

JOINED_MICROBATCHES: Final = 4
"""Computed in one go when they wait; more would make the first of them wait too long."""
SHORT_HEADER_BYTES: Final = 64 * 1024
"""Calls, and whatever strangers have to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What a volunteer decides about the part this node takes."""

    founder: bool = False
    """Create the run instead of joining it."""
    observer: bool = False
    """Host nothing; only train."""
    stage: int | None = None
    """The stage we would like to host; None leaves it to the lead."""
    initial: InitialState | None = None
    """What the run begins from, when it goes on from the checkpoint of another."""
    restart: RestartOptions | None = None
    """What this node has of the run on its disk."""
    given_up: HistoryEndsError | None = None
    """The history of the run that this node was in before, which ended."""
    in_flight: int = 4
    """Microbatches our trainer works on at once."""


@asynccontextmanager
async def open_peer(
    run: RunSpec,
    host: Host,
    guard: Guard,
    resources: Resources,
    options: PeerOptions,
    *,
    signer: Signer,
    verify: VerifySignature,
    rng: random.Random,
    hooks: PeerHooks,
) -> AsyncIterator[PipelinePeer]:
    """Make a peer and let it take part until the block ends. Open its endpoints (`wire_of`) inside."""
    async with trio.open_nursery() as nursery:
        peer = PipelinePeer(
            run,
            host.peer_id,
            resources.caller,
            guard,
            resources.compute,
            resources.codec,
            sign=signer.sign,
            verify=verify,
            rng=rng,
            hooks=hooks,
            founder=options.founder,
            observer=options.observer,
            stage=options.stage,
            in_flight=options.in_flight,
            restart=options.restart,
            initial=options.initial,
            given_up=options.given_up,
        )
        guard.counts_on = peer.counts_on
        try:
            await nursery.start(peer.run)
            rumours = Rumours(host, run.run_id, guard, heard=peer.rumour_heard)
            peer.on_rumour = rumours.spread
            nursery.start_soon(rumours.run)
            yield peer
        finally:
            nursery.cancel_scope.cancel()


def wire_of(peer: PipelinePeer) -> Mapping[str, Endpoint]:
    """Return the services `ledger`, `restart`, `stage`, `reduce`, `state` and `start`, answered by this peer.

    What a peer may send is bounded: tensors come with work only, long headers are records, from who decides them.
    """
    limits = limits_of(peer.run_spec)
    work = dataclasses.replace(limits, header_bytes_max=SHORT_HEADER_BYTES)

    def of_ledger(sender: PeerID) -> Limits:
        known = peer.knows(sender)
        return _no_tensors(limits.header_bytes_max if known else SHORT_HEADER_BYTES)

    def short(sender: PeerID) -> Limits:
        return _no_tensors(SHORT_HEADER_BYTES)

    return {
        LEDGER_SERVICE: Endpoint(peer.answer_ledger, of_ledger),
        RESTART_SERVICE: Endpoint(peer.answer_restart, of_ledger),
        STAGE_SERVICE: Endpoint(peer.answer_stage, lambda sender: work),
        REDUCE_SERVICE: Endpoint(peer.reduction.answer, short),
        STATE_SERVICE: Endpoint(peer.answer_state, short),
        START_SERVICE: Endpoint(peer.answer_start, short),
    }


def _no_tensors(header_bytes_max: int) -> Limits:
    return Limits(header_bytes_max=header_bytes_max, body_bytes_max=0, tensors_max=0)


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
