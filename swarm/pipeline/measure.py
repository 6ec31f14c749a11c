"""How fast this machine computes the stages of a run: what `murmura bench` shows. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.measuring import Measured, rate
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.shapes import input_spec, target_spec


def measure(run: RunSpec, path: str, seconds: float) -> Iterator[Measured]:
    """Yield, for each stage, the samples a second of forward and backward, as a host of it is asked for. Needs no data."""
    stages = pipeline_of(run).stages
    for stage in range(stages):
        call = _microbatch(run, stage)
        sequences = pipeline_of(run).sequences
        yield Measured(f"stage {stage}", sequences * rate(call, seconds / stages), "samples/s")


def _microbatch(run: RunSpec, stage: int) -> Callable[[], object]:
    """Return the work for one microbatch at one stage: a forward, and the backward that recomputes it."""
    hosted = HostedStage(run, stage)
    x = _random(input_spec(run, stage, 1).dtype, input_spec(run, stage, 1).shape)
    if hosted.is_last:
        targets = _random("uint8", target_spec(run, 1).shape)
        return lambda: hosted.loss(x, targets, count=True)
    grad_y = torch.zeros_like(hosted.forward(x))

    def both() -> object:
        hosted.forward(x)
        return hosted.backward(x, grad_y, count=True)

    return both


def _random(dtype: str, shape: tuple[int, ...]) -> Tensor:
    if dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    return torch.randn(shape, dtype=getattr(torch, dtype))
