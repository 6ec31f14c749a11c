"""Seeds through the simulator: every one that ever failed, then a fixed range of others."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.engine.runner import PROCESSES, Outcome, outcome_of, regressions, replay_command
from tests.sim.engine.subject import MODES, subject_of

SEEDS = {"pipeline": 110, "moe": 20}
"""The pipeline's are the oldest and find the rarest things; those of moe take longest."""
SEEDS_OF_OTHERS = 60

pytestmark = pytest.mark.sim


def _run(job: tuple[str, int]) -> Outcome:
    mode, seed = job
    return outcome_of(subject_of(mode), seed)


def failures(mode: str, seeds: list[int]) -> list[str]:
    """Run seeds in two processes and return what failed, each with the command that replays it."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        outcomes = pool.map(_run, [(mode, seed) for seed in seeds], chunksize=4)
    return [
        f"{o.promise}: {o.failure}; replay: {replay_command(mode, o.seed)}"
        for o in outcomes
        if o.failure is not None
    ]


@pytest.mark.parametrize("mode", MODES)
def test_no_seed_fails_again_that_failed_once(mode: str) -> None:
    assert failures(mode, regressions(subject_of(mode))) == []


@pytest.mark.parametrize("mode", MODES)
def test_the_first_seeds_keep_every_promise(mode: str) -> None:
    assert failures(mode, list(range(SEEDS.get(mode, SEEDS_OF_OTHERS)))) == []
