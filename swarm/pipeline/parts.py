"""A stage as a part: `stage/2`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protocols.frames import TensorSpec
from swarm.hosting.module import STEP
from swarm.pipeline.hosted_stage import HostedStage
from swarm.state.part import Part
from swarm.state.snapshot import expected_specs


def part_name(stage: int) -> str:
    return f"stage/{stage}"


def stage_part(hosted: HostedStage) -> Part:
    """Describe the stage as it is now."""

    def snapshot() -> tuple[int, Mapping[str, Tensor]]:
        tensors = hosted.snapshot()
        return int(tensors[STEP]), tensors

    return Part(part_name(hosted.stage), hosted.version, snapshot, hosted.load)


def stage_specs(hosted: HostedStage) -> dict[str, TensorSpec]:
    """Describe what a snapshot of this stage holds."""
    with torch.no_grad():
        return expected_specs(hosted.snapshot())
