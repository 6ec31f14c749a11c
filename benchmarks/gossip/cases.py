"""One run each: federated averaging, ours, plain gossip; and what is asked of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch

from benchmarks.gossip.liars import LIES, place_liars
from benchmarks.gossip.population import Population, Training
from benchmarks.gossip.swarm import Curve, Swarm
from protocols.gossip.settings import GossipSpec
from protocols.run import MlpSpec
from swarm.data.digits import read_digits
from swarm.data.images import read_images
from swarm.data.partition import Kind, partition
from swarm.data.samples import Split, standardised

PEERS: Final = 50
ROUNDS: Final = 200
PLAIN_ROUNDS: Final = 300
LIARS: Final = 10
LIARS_AMONG_NEIGHBOURS: Final = 3
EVERY: Final = 2
"""Rounds between two looks."""
WIDTH: Final = 64
ALPHA: Final = 0.5

OURS: Final = GossipSpec()
PLAIN: Final = GossipSpec(correct=False, clip=False, variance_factor=0.0, own_share=0.5)
"""The mix of the paper's baseline, without correction, refusals or clipping."""

Method = Literal["federated", "ours", "ours_mean_target", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run, small enough to be sent to a worker process."""

    method: Method
    depth: int
    data: Kind
    seed: int
    file: str | None = None
    lie: str | None = None
    placed: bool = False
    """Leave out of the mean those who would lie, also when nobody does."""


def run(job: Job) -> Curve:
    """Do one run on one core."""
    torch.set_num_threads(1)
    split = _split(job.file)
    if job.method == "federated":
        return federated(population(job, split, independent=False), rounds=ROUNDS)
    spec = {"ours": OURS, "ours_mean_target": replace(OURS, target="mean")}.get(job.method, PLAIN)
    liars: frozenset[int] = frozenset()
    if job.placed:
        liars = place_liars(
            PEERS, LIARS, neighbours_max=LIARS_AMONG_NEIGHBOURS, spec=spec, seed=job.seed
        )
    lie = LIES[job.lie] if job.lie is not None else None
    swarm = Swarm(
        population(job, split, independent=True), spec, seed=job.seed, liars=liars, lie=lie
    )
    rounds = ROUNDS if job.placed or job.method != "plain" else PLAIN_ROUNDS
    return swarm.run(rounds=rounds, every=EVERY)


def population(job: Job, split: Split, *, independent: bool) -> Population:
    """Return the peers of a job: each with its part of the data, and its own start or a common one."""
    parts = partition(
        split.train.y.tolist(), kind=job.data, partitions=PEERS, seed=job.seed, alpha=ALPHA
    )
    start = 1000 * job.seed
    seeds = [start + index for index in range(PEERS)] if independent else [start] * PEERS
    spec = MlpSpec(kind="mlp", layers=job.depth, width=WIDTH)
    return Population(spec, split, parts, seeds, Training(), seed=job.seed)


def federated(peers: Population, *, rounds: int) -> Curve:
    """Average all models after each batch: a star whose hub does not train. One start, nobody is late, nobody lies."""
    curve = Curve()
    everybody = list(range(len(peers)))
    for done in range(rounds + 1):
        if done % EVERY == 0:
            curve.rounds.append(float(done))
            curve.accuracy.append(peers.accuracy([0]))
            curve.variances.append(
                [float(peers.weights[0, a:b].var()) if b - a > 1 else 0.0
                 for a, b in peers.table.bounds]
            )  # fmt: skip
        peers.train(everybody)
        peers.weights[:] = peers.weights.mean(0)
    return curve


def rounds_until(curve: Curve, accuracy: float) -> float | None:
    """Return the first look at which the mean accuracy is there; None: never."""
    return next(
        (r for r, a in zip(curve.rounds, curve.accuracy, strict=True) if a >= accuracy), None
    )


def accuracy_at(curve: Curve, rounds: int) -> float:
    """Return the accuracy at this round: the mean of the last three looks, which differ by noise."""
    last = curve.rounds.index(float(rounds))
    return _mean(curve.accuracy[last - 2 : last + 1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _split(file: str | None) -> Split:
    images = read_digits() if file is None else read_images(Path(file))
    return standardised(images, held_out=0.2, seed=0)
