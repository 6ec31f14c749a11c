"""A pipeline that goes on from another run's checkpoint: whether its stages can be made of the files."""

from __future__ import annotations

from collections.abc import Collection

from protocols.frames import TensorSpec
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.parts import stage_specs
from swarm.state.checkpoint import Checkpoint
from swarm.state.initial import check_whole


def check_start(run: RunSpec, checkpoints: Collection[Checkpoint]) -> None:
    """Tell whether all stages of a run can be made of these files. Raises StartMisfitError."""
    specs: dict[str, TensorSpec] = {}
    for stage in range(pipeline_of(run).stages):
        specs |= stage_specs(HostedStage(run, stage))
    check_whole(specs, checkpoints)
