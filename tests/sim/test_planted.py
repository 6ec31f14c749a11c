"""The planted faults that are caught quickly. All of them: `python -m tests.sim.planted`."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim.checkers import ALL
from tests.sim.planted import PROCESSES, SUITE, Catch, catch

SEEDS_MAX = 60
SLOW = {
    "a microbatch asked for twice counts twice",
    "a fence keeps the gradient",
    "an aborted reduction leaves the tally frozen",
    "a promise does not say what was accepted",
    "a restarted node takes itself for its former self",
    "a member reduces while it counts",
    "counting goes on during the commit",
    "a fenced member is not marked",
    "whoever wants to leave may",
    "leases of dead trainers are never dealt again",
    "what was counted in vain is counted again at once",
    "records that were missed are not asked for",
}
"""They need many seeds, or long runs; here they would cost more than the other tests together."""

pytestmark = pytest.mark.sim


def test_every_checker_has_a_fault_to_catch() -> None:
    assert {planted.checker for planted in SUITE} == set(ALL)


def test_no_two_faults_share_a_name() -> None:
    names = [planted.name for planted in SUITE]
    assert len(set(names)) == len(names)
    assert set(names) >= SLOW


def _catch_named(name: str) -> Catch:
    return catch(next(planted for planted in SUITE if planted.name == name), SEEDS_MAX)


def test_planted_faults_are_caught() -> None:
    quick = [planted.name for planted in SUITE if planted.name not in SLOW]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        catches = pool.map(_catch_named, quick, chunksize=1)
    assert [found.name for found in catches if found.seeds_needed is None] == []
