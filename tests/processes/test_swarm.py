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
from tests.processes.points import done_in_step, order
from tests.processes.swarm import ProcessSwarm, child, pipeline, process_swarm

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
    reached = swarm.step(first)  # before the journals are read: steps do not wait for that
    assert swarm.check_history() >= reached - 1 > began
    swarm.start(victim.paths.state_dir.name)
    swarm.wait_whole()


def test_a_member_that_is_stopped_is_removed_and_joins_again(swarm: ProcessSwarm) -> None:
    first, victim = swarm.nodes["first"], swarm.nodes["third"]
    expulsions = pipeline(victim)["expulsions"]
    victim.process.send_signal(signal.SIGSTOP)
    try:
        swarm.wait_members(3, seen_by=first)
        swarm.wait_steps(20, seen_by=first)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    swarm.wait_whole()
    assert pipeline(victim)["expulsions"] > expulsions
    assert swarm.check_history() > 0


def test_a_lead_that_is_stopped_in_the_middle_of_agreeing_is_replaced_and_decides_nothing_afterwards(
    swarm: ProcessSwarm,
) -> None:
    lead = swarm.lead()
    witness = swarm.living(lead)[0]
    expulsions = pipeline(lead)["expulsions"]
    ordered = swarm.step(witness) + 2
    order(lead.witness, "accept sent", step=ordered, number=signal.SIGSTOP)
    swarm.wait(lambda: done_in_step(lead.witness))
    try:
        swarm.wait_members(3, seen_by=witness)
        swarm.wait_steps(3, seen_by=witness)
    finally:
        lead.process.send_signal(signal.SIGCONT)
    swarm.wait_whole()
    assert pipeline(lead)["expulsions"] > expulsions
    assert swarm.check_history() > 0


@pytest.mark.parametrize(
    "point", ["backward wanted", pytest.param("loss wanted", marks=pytest.mark.soak)]
)
def test_what_a_trainer_that_is_stopped_or_killed_had_leased_is_done_by_others(
    swarm: ProcessSwarm, point: str
) -> None:
    """Between forward and backward, and with one stage counted and the other not; first stopped, then killed."""
    first = swarm.nodes["first"]
    trainer = swarm.start(f"trainer with {point}", "--no-host")
    swarm.wait(lambda: pipeline(trainer)["microbatches_in_flight"])
    order(trainer.witness, point, step=swarm.step(first) + 2, number=signal.SIGSTOP)
    swarm.wait(lambda: done_in_step(trainer.witness))
    swarm.wait_steps(3, seen_by=first)
    trainer.process.send_signal(signal.SIGCONT)
    swarm.wait(lambda: pipeline(trainer)["microbatches_in_flight"])
    order(trainer.witness, point, step=swarm.step(first) + 2)
    died = swarm.wait_died(trainer)
    swarm.wait(lambda: swarm.step(first) >= died + 3)
    assert swarm.check_history() > died
    swarm.wait_whole()


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


def test_a_node_whose_disk_is_full_says_so_and_goes_on(swarm: ProcessSwarm) -> None:
    """What is written of a run is for people and for the next start; a step needs none of it."""
    victim = swarm.nodes["fourth"]
    (journal,) = victim.paths.state_dir.glob("runs/*/records.msgpack")
    kept = journal.with_name("kept")
    journal.rename(kept)
    journal.symlink_to("/dev/full")
    swarm.wait(lambda: any("journal" in r for r in victim.ask("status")["unhealthy_reasons"]))
    counted = pipeline(victim)["microbatches_counted"]
    swarm.wait_steps(3, seen_by=victim)
    swarm.wait(lambda: pipeline(victim)["microbatches_counted"] > counted)
    assert "record not written to the journal: No space left on device" in victim.log.read_text()
    kept.rename(journal)
    swarm.wait(lambda: victim.ask("status")["healthy"])
    written = len(swarm.records(victim))
    swarm.wait(lambda: len(swarm.records(victim)) > written)
    assert swarm.check_history() > 0


def test_the_run_goes_on_and_grows_without_the_node_that_all_came_in_by(
    swarm: ProcessSwarm,
) -> None:
    """A new node is invited by another member, in whose invite the lost one's address still stands."""
    swarm.nodes["first"].family()
    swarm.nodes["first"].kill()
    second = swarm.nodes["second"]
    swarm.wait_members(3, seen_by=second)
    swarm.wait_steps(3, seen_by=second)
    swarm.start("newcomer")
    swarm.wait_whole()


def test_a_stage_that_loses_all_its_replicas_but_one_at_once_goes_on(swarm: ProcessSwarm) -> None:
    swarm.start("third of stage 1", "--stage", "1")
    swarm.wait_whole()
    survivor, *victims = [node for node in swarm.living() if pipeline(node)["stage"] == 1]
    assert len(victims) == 2
    witness = swarm.living(*victims)[0]
    for victim in victims:
        victim.family()
    ordered = swarm.step(witness) + 2
    for victim in victims:
        order(victim.witness, "gradient counted", step=ordered)
    died = max(swarm.wait_died(victim) for victim in victims)
    swarm.wait_members(3, seen_by=survivor)
    swarm.wait(lambda: swarm.step(survivor) >= died + 3)
    assert swarm.check_history() > died
    swarm.start("in its place", "--stage", "1")
    swarm.wait_whole()


def test_sigterm_hands_over_and_exits_in_time(swarm: ProcessSwarm) -> None:
    first, leaver = swarm.living()[:2]
    began_s = time.monotonic()
    assert leaver.stop() == exit_codes.OK
    assert time.monotonic() - began_s < 25
    assert leaver.left_behind() == set()
    assert len(pipeline(first)["members"]) == 3
    swarm.wait_steps(2, seen_by=first)
    assert swarm.check_history() > 0


def test_all_that_are_left_may_leave_at_once(swarm: ProcessSwarm) -> None:
    left = swarm.living()
    began_s = time.monotonic()
    for node in left:
        node.family()
        node.process.send_signal(signal.SIGTERM)
    assert [node.process.wait(30) for node in left] == [exit_codes.OK] * len(left)
    assert time.monotonic() - began_s < 25
