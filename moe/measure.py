"""How fast this machine computes an expert: what `murmura bench` shows of a moe run. Loads torch."""

from __future__ import annotations

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
    model, spec = run.model, run.settings(MoeSpec)
    assert isinstance(model, ByteTransformerSpec)
    uid = next(iter(spec.uids(model.layers)))
    hosted = HostedModule(build_feed_forward(model, spec, uid, run.seed), run.optimizer)
    x = torch.randn(ROWS, model.width).to(hosted.flat.dtype)

    def call() -> object:
        leaf = x.clone().requires_grad_()
        y = hosted.module(leaf)
        return hosted.differentiate(y, torch.ones_like(y), [leaf], count=1)

    yield Measured("one expert", ROWS * rate(call, seconds), "rows/s")
