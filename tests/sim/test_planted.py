"""Every planted fault is caught, and within far fewer seeds than `python -m tests.sim.planted` allows."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.pipeline.checkers import ALL
from tests.sim.pipeline.planted import PROCESSES, SUITE, Catch, catch

SEEDS_MAX = 100
pytestmark = pytest.mark.sim


def test_every_checker_has_a_fault_to_catch() -> None:
    assert {planted.checker for planted in SUITE} == set(ALL)


def test_no_two_faults_share_a_name() -> None:
    names = [planted.name for planted in SUITE]
    assert len(set(names)) == len(names)


def _catch_named(name: str) -> Catch:
    planted = next(planted for planted in SUITE if planted.name == name)
    return catch(planted, SEEDS_MAX, first_seed=planted.first_seed)


def test_planted_faults_are_caught() -> None:
    names = [planted.name for planted in SUITE]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        catches = pool.map(_catch_named, names, chunksize=1)
    assert [found.name for found in catches if found.seeds_needed is None] == []
