"""SIGKILL at every point of a step, wherever the victim is in it: nothing is counted twice, nothing is lost.

One swarm of four for all points. Each victim dies at its point by itself and a new node takes its place; one and the
same, dying again and again, would be let in later each time (protocols.ledger.patience).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes.forked import ForkedDaemon
from tests.processes.points import POINTS, order
from tests.processes.swarm import ProcessSwarm, pipeline, process_swarm


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSwarm]:
    with process_swarm(tmp_path_factory.mktemp("kills")) as started:
        for name in ("first", "second", "third", "fourth"):
            started.start(name)
        started.wait_whole()
        yield started
        assert started.check_history() > 0


pytestmark = pytest.mark.process

FAST = {"forward computed", "gradient counted", "gradient sent", "accept sent", "record received"}
"""One of each kind, for `make test`; the others are for `make soak`."""
LEADS = {"reduce sent", "accept sent", "record sent"}
"""Only the lead gets there."""
FOLLOWS = {"reduced sent", "accept received", "accepted sent", "record received", "tally sent"}
"""The lead never gets there."""
FIRST_STAGE = {"forward asked", "forward computed"}


def victim_for(swarm: ProcessSwarm, point: str) -> ForkedDaemon:
    lead = swarm.lead()
    if point in LEADS:
        return lead
    for node in swarm.living():
        if node is lead and point in FOLLOWS:
            continue
        if point in FIRST_STAGE and pipeline(node)["stage"] != 0:
            continue
        return node
    raise AssertionError(f"nobody gets to: {point}")


def marked(point: str) -> Any:
    return pytest.param(point, marks=() if point in FAST else pytest.mark.soak)


@pytest.mark.parametrize("point", [marked(point.name) for point in POINTS])
def test_a_node_killed_anywhere_in_a_step_costs_no_microbatch(
    swarm: ProcessSwarm, point: str
) -> None:
    victim = victim_for(swarm, point)
    witness = swarm.living(victim)[0]
    victim.family()
    ordered = swarm.step(witness) + 2
    order(victim.witness, point, step=ordered)
    swarm.start(
        f"after {point}", doomed=victim
    )  # it comes in whenever it does: before, during or after the loss
    died = swarm.wait_died(victim)
    assert died >= ordered
    swarm.wait(lambda: swarm.step(witness) >= died + 3)
    swarm.wait_whole()
    assert swarm.check_history() >= died + 2
