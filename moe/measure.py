"""How fast this machine computes an expert: what `murmura bench` shows of a moe run, and what bounds how many it hosts. Loads torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch

from moe.model import build_feed_forward
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec, RunSpec
from swarm.hosting.module import HostedModule
from swarm.measuring import Measured, rate

ROWS: Final = 256
"""Of one call: a few samples' worth, as gates send them."""


def measure(run: RunSpec, path: str, seconds: float) -> Iterator[Measured]:
    """Yield the rows a second of one expert, forward and backward. Needs no data."""
    yield Measured("one expert", rows_per_s(run, seconds), "rows/s")


def rows_per_s(run: RunSpec, seconds: float) -> float:
    """Return the rows a second of one expert, forward and backward, measured for so long on this thread."""
    model, spec = run.model, run.settings(MoeSpec)
    assert isinstance(model, ByteTransformerSpec)
    uid = next(iter(spec.uids(model.layers)))
    hosted = HostedModule(build_feed_forward(model, spec, uid, run.seed), run.optimizer)
    x = torch.randn(ROWS, model.width).to(hosted.flat.dtype)

    def call() -> object:
        leaf = x.clone().requires_grad_()
        y = hosted.module(leaf)
        return hosted.differentiate(y, torch.ones_like(y), [leaf], count=1)

    return ROWS * rate(call, seconds)


def experts_in_a_second(run: RunSpec, rows_per_s: float) -> int:
    """Return how many experts this machine can have step once in a second, each on its share of one trainer's batch; at least 1."""
    spec = run.settings(MoeSpec)
    assert isinstance(run.model, ByteTransformerSpec)
    rows = run.training.batch * run.model.context * spec.k / math.prod(spec.grid)
    return max(1, int(rows_per_s / max(1.0, rows)))
