"""Which runs there are: models, conditions, rates and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from benchmarks.dmoe.trainers import Condition, Outcome, Run, Sizes
from swarm.data.digits import read_digits
from swarm.data.images import Images, read_images
from swarm.data.partition import held_out_split
from swarm.data.samples import standardised

MODELS: Final = (64, 16, 0)
"""Experts of each layer; 0 is the dense network. The slowest first."""
STILL: Final = Condition()
STORM: Final = Condition(latency_ms=1000, failures=0.1)
OTHERS: Final = (
    Condition(latency_ms=100),
    Condition(latency_ms=1000),
    Condition(latency_ms=100, experts_only=True),
    Condition(latency_ms=1000, experts_only=True),
    Condition(latency_ms=1000, failures=0.1, experts_only=True),
)
_EXPERT_RATES: Final = (3e-4, 1e-3, 3e-3, 1e-2)
RATES: Final = {0: (1e-4, 3e-4, 1e-3, 3e-3), 16: _EXPERT_RATES, 64: _EXPERT_RATES}
"""To choose from: wide enough that none of the best is the first or the last."""
HELD_OUT: Final = 1 / 3
SWEPT_SEED: Final = 0
"""None of those that figures are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run, small enough to be sent to a worker process."""

    experts: int
    condition: Condition
    rate: float
    seed: int
    file: str | None = None
    sizes: Sizes = field(default_factory=Sizes)


def run(job: Job) -> Outcome:
    """Do one run on one core."""
    torch.set_num_threads(1)
    split = standardised(_images(job.file), held_out=HELD_OUT, seed=job.seed)
    return Run(
        split, job.sizes, job.condition, experts=job.experts, rate=job.rate, seed=job.seed
    ).run()


def tested(file: str | None, seed: int) -> Sequence[int]:
    """Return which images a seed tests on."""
    return held_out_split(len(_images(file).y), held_out=HELD_OUT, seed=seed)[1]


def sweep(file: str | None) -> list[Job]:
    """Return the runs that decide on rates."""
    return [
        Job(experts=experts, condition=condition, rate=rate, seed=SWEPT_SEED, file=file)
        for experts in MODELS
        for condition in (STILL, STORM)
        for rate in RATES[experts]
    ]


def swept_for(condition: Condition) -> Condition:
    """Return where the rate for a condition was swept: at 0 ms for short latencies, at the worst for long ones."""
    return STORM if condition.latency_ms >= STORM.latency_ms else STILL


def jobs(
    rates: dict[tuple[int, Condition], float], *, seeds: int, seeds_of_others: int, file: str | None
) -> Iterator[Job]:
    """Yield the runs that figures are of.

    Args:
      seeds: for what the bound is on: no latency, and the worst.
      seeds_of_others: for all other conditions.
    """
    for experts in MODELS:
        for condition in (STILL, STORM, *OTHERS):
            count = seeds_of_others if condition in OTHERS else seeds
            rate = rates[experts, swept_for(condition)]
            for seed in range(1, count + 1):
                yield Job(experts=experts, condition=condition, rate=rate, seed=seed, file=file)


def _images(file: str | None) -> Images:
    return read_images(Path(file)) if file is not None else read_digits()
