"""What both sides of benchmarks.expert_rpc do: the experts, the rows, and the timing of calls. Knows neither library."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Spec:
    """One kind of call."""

    rows: int
    width: int
    backward: bool
    """Forward, backward and optimizer step; else the forward of a module that does nothing."""


SPECS: Final = {
    "small": Spec(32, 256, backward=False),
    "bulk": Spec(2048, 1024, backward=False),
    "ffn": Spec(2048, 1024, backward=True),
}


def make_module(name: str) -> nn.Module:
    """Make an expert: nothing at all, or a feed-forward 1024-4096-1024."""
    if not SPECS[name].backward:
        return nn.Identity()
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024))


def rows_of(name: str) -> Tensor:
    return torch.randn(SPECS[name].rows, SPECS[name].width)


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls that were made."""

    seconds: float
    each_s: list[float]

    def answer(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "each_s": self.each_s}


def in_threads(pool: Executor, call: Callable[[], None], calls: int, at_once: int) -> Timed:
    """Make calls from `at_once` threads, each one after the other."""

    def turn(count: int) -> list[float]:
        each = []
        for _ in range(count):
            began_s = time.monotonic()
            call()
            each.append(time.monotonic() - began_s)
        return each

    began_s = time.monotonic()
    found = list(pool.map(turn, [calls // at_once] * at_once))
    return Timed(time.monotonic() - began_s, [s for each in found for s in each])
