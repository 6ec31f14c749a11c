"""Do eight real daemons learn as the simulated ones do? The demo's swarm against twenty seeds of the same in virtual time."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from node.demo.scenarios.gossip.plan import PEERS, STEPS, make_plan
from node.demo.scenarios.gossip.scenario import LOOKS, Outcome, train
from node.demo.scenarios.gossip.simulated import Course, Events, SimulatedSwarm
from node.demo.screen import open_screen
from node.runfile import read_run_file
from protocols.gossip.settings import GossipSpec
from swarm.learner.task import open_task

SEEDS: Final = 20
DEVIATIONS: Final = 3.0


def figures(workers: int) -> dict[str, Any]:
    """Run the daemons, then the simulations, and compare them at `LOOKS` points."""
    # A short path: a unix socket's has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="murmura-") as name:
        folder = Path(name)
        plan = make_plan(folder / "run.toml", steps=STEPS)
        screen = open_screen(began_s=time.monotonic())
        try:
            outcome = train(plan, folder, screen)
        finally:
            screen.close()
        events = Events(kill_at=outcome.killed_at, join_at=outcome.began_at)
        jobs = [(plan.run_file, events, seed) for seed in range(1, SEEDS + 1)]
        with ProcessPoolExecutor(workers) as pool:
            courses = list(pool.map(_simulate, jobs))
    return _compared(outcome, courses)


def _simulate(job: tuple[Path, Events, int]) -> Course:
    run_file, events, seed = job
    torch.set_num_threads(1)
    run = read_run_file(run_file)
    spec = dataclasses.replace(run.settings(GossipSpec), neighbours_to_start=0)
    swarm = SimulatedSwarm(run, open_task(run), spec, peers=PEERS, seed=seed)
    print(f"simulated: seed {seed}", file=sys.stderr)
    return swarm.play(events)


def _compared(outcome: Outcome, courses: list[Course]) -> dict[str, Any]:
    points = []
    for batches, accuracy in outcome.course:
        found = [course.at(batches) for course in courses]
        mean = statistics.fmean(found)
        deviation = statistics.stdev(found)
        points.append(
            {
                "batches": round(batches, 1),
                "daemons": round(accuracy, 2),
                "simulated_mean": round(mean, 2),
                "simulated_deviation": round(deviation, 2),
                "within": abs(accuracy - mean) <= DEVIATIONS * deviation,
            }
        )
    within = len(points) == LOOKS and all(point["within"] for point in points)
    broken = [] if within else ["daemons_within_spread: the daemons learn unlike the simulation"]
    return {
        "daemons_within_spread": within,
        "killed_at": outcome.killed_at,
        "joined_at": outcome.began_at,
        "points": points,
        "simulated_seeds": len(courses),
        "bounds_broken": broken,
    }
