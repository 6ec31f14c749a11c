"""Gather a trained model from the swarm: every stage's parameters, all of the same step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import trio
from torch import Tensor

from protocols.run.pipeline import pipeline_of
from swarm.hosting.module import PARAMETERS
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.parts import part_name, stage_specs
from swarm.pipeline.peer import PipelinePeer
from swarm.resources import Resources
from swarm.state.export import export_model
from swarm.state.transfer import Fetch, FetchError

_TRIES: Final = 20
"""Stages commit within milliseconds of each other, so a second look usually finds them all at one step."""


async def export_run(peer: PipelinePeer, resources: Resources, path: Path) -> dict[str, Any]:
    """Write the model to one safetensors file. Raises FetchError, and OSError from writing."""
    problem = "no stage has a member"
    for _ in range(_TRIES):
        try:
            step, gathered = await _gather(peer, resources)
        except FetchError as error:
            problem = str(error)
            await trio.sleep(0.25)
            continue
        write = functools.partial(export_model, path, peer.run_spec, step=step, stages=[gathered])
        size_bytes = await resources.codec.run_own(write)
        return {"path": str(path), "step": step, "bytes": size_bytes}
    raise FetchError(f"the model could not be gathered: {problem}")


async def _gather(peer: PipelinePeer, resources: Resources) -> tuple[int, dict[str, Tensor]]:
    """Return (step, parameters of all stages). Raises FetchError when stages are at different steps."""
    parameters: dict[str, Tensor] = {}
    record = peer.ledger.record
    step = record.step if record is not None else 0
    for stage in range(pipeline_of(peer.run_spec).stages):
        tensors = await _stage_tensors(peer, resources, stage, step)
        prefix = f"{PARAMETERS}/"
        parameters |= {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    return step, parameters


async def _stage_tensors(
    peer: PipelinePeer, resources: Resources, stage: int, step: int
) -> dict[str, Tensor]:
    compute = resources.compute
    hosted = peer.state.complete
    if hosted is not None and hosted.stage == stage:
        tensors: dict[str, Tensor] = await compute.run_own(hosted.snapshot)
        if int(tensors["step"]) == step:
            return tensors
        raise FetchError("this node's stage went on to the next step")
    specs = await compute.run_own(lambda: stage_specs(HostedStage(peer.run_spec, stage)))
    donors = [member.peer for member in peer.ledger.view.replicas(stage) if member.peer != peer.me]
    fetch = Fetch(resources.caller, resources.codec, specs, part=part_name(stage), version=step)
    return dict((await fetch.run(donors)).tensors)
