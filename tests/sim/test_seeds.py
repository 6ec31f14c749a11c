"""Seeds through the simulator: every one that ever failed, then a fixed range of others."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.engine.outcome import Outcome, outcome_of, regressions

SEEDS = range(200)
PROCESSES = 2

pytestmark = pytest.mark.sim


def failures(seeds: list[int]) -> list[str]:
    """Run seeds in two processes and return what failed, each with the command that replays it."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        outcomes: list[Outcome] = pool.map(outcome_of, seeds, chunksize=4)
    return [
        f"{o.promise}: {o.failure}; replay: .venv/bin/python -m tests.sim --replay {o.seed}"
        for o in outcomes
        if o.failure is not None
    ]


def test_no_seed_fails_again_that_failed_once() -> None:
    assert failures(regressions()) == []


def test_two_hundred_seeds_keep_every_promise() -> None:
    assert failures(list(SEEDS)) == []
