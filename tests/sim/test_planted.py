"""Every planted fault is caught, and within far fewer seeds than `python -m tests.sim.planted` allows."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.engine.planted import Catch, catch
from tests.sim.engine.runner import PROCESSES
from tests.sim.engine.subject import MODES, subject_of, suite_of

SEEDS_MAX = 100
pytestmark = pytest.mark.sim


@pytest.mark.parametrize("mode", MODES)
def test_every_checker_has_a_fault_to_catch(mode: str) -> None:
    assert {planted.checker for planted in suite_of(mode)} == set(subject_of(mode).checkers)


@pytest.mark.parametrize("mode", MODES)
def test_no_two_faults_share_a_name(mode: str) -> None:
    names = [planted.name for planted in suite_of(mode)]
    assert len(set(names)) == len(names)


def _catch_soon(job: tuple[str, int]) -> Catch:
    mode, index = job
    planted = suite_of(mode)[index]
    return catch(mode, planted, SEEDS_MAX, first_seed=planted.first_seed)


def test_planted_faults_are_caught() -> None:
    jobs = [(mode, index) for mode in MODES for index in range(len(suite_of(mode)))]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        catches = pool.map(_catch_soon, jobs, chunksize=1)
    assert [(found.mode, found.name) for found in catches if found.seeds_needed is None] == []
