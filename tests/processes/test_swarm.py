"""Four real daemons, one after the other hit by what happens to volunteers. One swarm for all tests: starting is slow.

Each test leaves four members that train. The last thing that is checked, when all have ended, is that no process is
left behind.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from node import exit_codes
from tests.node.processes import Daemon
from tests.processes.swarm import ProcessSwarm, check_counted_once, child, pipeline, process_swarm

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSwarm]:
    with process_swarm(tmp_path_factory.mktemp("swarm")) as started:
        for name in ("first", "second", "third", "fourth"):
            started.start(name)
        started.wait_whole()
        yield started


def holding_work(swarm: ProcessSwarm, *, but: Daemon) -> Daemon:
    """Return a node that has counted something of the step in progress."""
    found: list[Daemon] = []

    def look() -> bool:
        found[:] = [n for n in swarm.living(but) if pipeline(n)["microbatches_counted_in_step"]]
        return bool(found)

    swarm.wait(look)
    return found[0]


def test_a_member_killed_in_the_middle_of_a_step_costs_no_microbatch(swarm: ProcessSwarm) -> None:
    first = swarm.nodes["first"]
    victim = holding_work(swarm, but=first)
    began = swarm.step(first)
    victim.kill()
    assert victim.left_behind() == set()
    swarm.wait_members(3, seen_by=first)
    swarm.wait_steps(3, seen_by=first)
    assert check_counted_once(swarm.records(first)) >= swarm.step(first) - 1 > began
    swarm.start(victim.paths.state_dir.name)
    swarm.wait_whole()


def test_a_member_that_is_stopped_is_removed_and_joins_again(swarm: ProcessSwarm) -> None:
    first, victim = swarm.nodes["first"], swarm.nodes["third"]
    victim.process.send_signal(signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        swarm.wait_members(3, seen_by=first)
        swarm.wait(lambda: time.monotonic() - began_s > 4.0)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    swarm.wait_whole()
    assert pipeline(victim)["expulsions"] == 1
    assert check_counted_once(swarm.records(victim)) > 0


def test_a_member_whose_p2pd_is_killed_recovers(swarm: ProcessSwarm) -> None:
    victim = swarm.nodes["fourth"]
    os.kill(child(victim, "p2pd"), signal.SIGKILL)
    swarm.wait(lambda: victim.ask("status")["network"]["transport"]["restarts"] == 1)
    swarm.wait_whole()
    counted = pipeline(victim)["microbatches_counted"]
    swarm.wait(lambda: pipeline(victim)["microbatches_counted"] > counted)


def test_training_does_not_notice_that_a_dht_process_is_killed(swarm: ProcessSwarm) -> None:
    first, victim = swarm.nodes["first"], swarm.nodes["second"]
    expulsions = pipeline(victim)["expulsions"]
    before = child(victim, "dht")
    os.kill(before, signal.SIGKILL)
    swarm.wait_steps(3, seen_by=victim)
    swarm.wait(lambda: child(victim, "dht") not in (0, before))
    assert len(pipeline(first)["members"]) == 4
    assert pipeline(victim)["expulsions"] == expulsions


def test_sigterm_hands_over_and_exits_in_time(swarm: ProcessSwarm) -> None:
    first, leaver = swarm.nodes["first"], swarm.nodes["third"]
    began_s = time.monotonic()
    assert leaver.stop() == exit_codes.OK
    assert time.monotonic() - began_s < 25
    assert leaver.left_behind() == set()
    assert len(pipeline(first)["members"]) == 3
    swarm.wait_steps(2, seen_by=first)
    assert check_counted_once(swarm.records(first)) > 0


def test_all_that_are_left_may_leave_at_once(swarm: ProcessSwarm) -> None:
    left = swarm.living()
    began_s = time.monotonic()
    for node in left:
        node.family()
        node.process.send_signal(signal.SIGTERM)
    assert [node.process.wait(30) for node in left] == [exit_codes.OK] * len(left)
    assert time.monotonic() - began_s < 25
