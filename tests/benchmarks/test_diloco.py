"""The benchmark of outer steps measures what it says: groups average, bytes are those sent, figures are compared with the best."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from benchmarks.diloco.cases import Job, Outcome
from benchmarks.diloco.population import Population
from benchmarks.diloco.report import figures
from protocols.collective.settings import CollectiveSpec
from protocols.run import AdamWSpec, DigitsSpec, MlpSpec, RunSpec, TrainingSpec
from swarm.learner.task import open_task

RUN = RunSpec(
    name="tiny",
    mode="collective",
    data=DigitsSpec(kind="digits", partitions=1),
    model=MlpSpec(kind="mlp", layers=3, width=16),
    optimizer=AdamWSpec(lr=1e-2),
    training=TrainingSpec(batch=8, steps=45),
    table=CollectiveSpec(local_steps=10, outer_rate=1.0, outer_momentum=0.0),
)
TASK = open_task(RUN)
PARAMETERS = sum(p.numel() for p in TASK.build(0).parameters())


def population(peers: int, **changes: object) -> Population:
    spec = dataclasses.replace(RUN.settings(CollectiveSpec), **changes)  # type: ignore[arg-type]
    return Population(dataclasses.replace(RUN, table=spec), TASK, peers=peers)


def test_replicas_are_one_after_a_round_and_their_mean() -> None:
    peers = population(3)
    for _ in range(9):
        peers.advance()
    twins = [replica.learner for replica in peers.replicas]
    assert not torch.equal(twins[0].flat, twins[1].flat)
    peers.advance()
    for learner in twins:
        assert torch.equal(learner.flat, peers.outer.parameters)


def test_bytes_are_those_of_a_butterfly() -> None:
    peers = population(2)
    for _ in range(45):
        peers.advance()
    assert peers.traffic.total == 5 * 4 * PARAMETERS, "four rounds and the last: two halves each"
    assert peers.traffic.peak == 4 * PARAMETERS


@pytest.mark.parametrize("codec", ["float16", "e3m0"])
def test_streaming_ends_with_one_model_that_has_learned(codec: str) -> None:
    peers = population(
        2, codec=codec, fragments=3, overlap_steps=2, outer_rate=0.7, outer_momentum=0.5
    )
    rng = random.Random(1)
    before = peers.replicas[0].learner.evaluate_on(peers.outer.parameters).loss
    for step in range(45):
        peers.advance()
        if step == 20:
            peers.replace_one(rng)
    for replica in peers.replicas:
        assert torch.equal(replica.learner.flat, peers.outer.parameters)
    assert peers.replicas[0].learner.evaluate().loss < 0.7 * before


def test_ratios_are_to_the_best_rate_and_broken_bounds_are_named() -> None:
    def outcome(loss: float, sent: int = 0, peak: int = 0) -> Outcome:
        return Outcome(
            parameters=1000, steps=[4000], losses=[loss], sent=sent, peak=peak, largest_share=0.25
        )

    def job(method: str, **more: object) -> Job:
        return Job(**({"method": method, "peers": 2, "seed": 1, "pattern": ""} | more))  # type: ignore[arg-type]

    runs = {
        job("data_parallel"): outcome(2.0),
        job("data_parallel", rate=0.1): outcome(1.9),
        job("diloco"): outcome(1.91, sent=4000 * 4000 // 30, peak=4000),
        job("streaming"): outcome(1.95, sent=4000 * 4000 // 240, peak=125),
        job("streaming", churn=True): outcome(1.92),
    }
    found = figures(runs)
    assert found["loss_ratio_to_data_parallel"] == round(1.95 / 1.9, 4)
    assert found["bytes_ratio"] == pytest.approx(240, rel=0.01)
    assert found["peak_bandwidth_ratio"] == pytest.approx(4.0, rel=0.01)
    assert [broken.split(":")[0] for broken in found["bounds_broken"]] == [
        "loss_ratio_to_data_parallel"
    ]
