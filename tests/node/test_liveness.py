"""A thread that computes and never comes back is seen: by /healthz, by the status, and by systemd's watchdog."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.heartbeat import MEASURE_EVERY_S, beat
from node.liveness import TASK_S_MAX, WAITS_S, alive_problem, ready_problem
from node.node import Node
from node.status import build_status
from node.systemd import Supervisor
from swarm.hosting.compute import ComputeThread
from swarm.mode import Progress
from tests.node.nodes import open_world

pytestmark = pytest.mark.trio


class Computing:
    """A service whose threads have been at one task for as long as the test says."""

    name = "pipeline"
    task_seconds = 0.0
    waiting_for: str | None = "2 of 3 members to come back"

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None: ...

    def status(self) -> dict[str, Any]:
        return {}

    def progress(self) -> Progress:
        return Progress(waiting_for=self.waiting_for)

    async def export(self, path: Path, options: Any) -> dict[str, Any]:
        raise NotImplementedError


class Watchdog(Supervisor):
    def __init__(self) -> None:
        super().__init__({})
        self.fed = 0

    def alive(self) -> None:
        self.fed += 1


def test_the_watchdog_starves_while_a_task_hangs_and_not_while_the_run_waits(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            node: Node = await world.node(run=world.run_file())
            service, watchdog = Computing(), Watchdog()
            world.nursery.start_soon(node.services.keep_running, service)
            world.nursery.start_soon(beat, node, watchdog)
            await trio.sleep(10 * MEASURE_EVERY_S + 1)
            assert watchdog.fed == 11  # though the run has been waiting for a majority all the time
            service.task_seconds = TASK_S_MAX + 1
            await trio.sleep(10 * MEASURE_EVERY_S)
            assert watchdog.fed == 11
            assert alive_problem(node) == "the compute thread has been at one task for 181 s"
            assert alive_problem(node) in build_status(node, now_unix_s=1.0)["unhealthy_reasons"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_node_whose_run_lets_nobody_in_counts_as_ready_after_a_while(tmp_path: Path) -> None:
    """Else a run without a majority would stall the rollout that mends it."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            node = await world.node(run=world.run_file())
            service = Computing()
            world.nursery.start_soon(node.services.keep_running, service)
            node.life.needs_state("pipeline", "asks to be let in")
            await trio.sleep(WAITS_S - 10)
            assert ready_problem(node).startswith("syncing: ")
            await trio.sleep(20)
            assert ready_problem(node) == ""
            service.waiting_for = None  # it is let in, and fetches
            assert ready_problem(node).startswith("syncing: ")
            node.life.has_state("pipeline", "has it")
            assert ready_problem(node) == ""

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_thread_says_how_long_it_has_been_at_one_task() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go_on.wait(30)

    async def main() -> None:
        async with ComputeThread("test") as compute, trio.open_nursery() as nursery:
            await compute.run(int)
            assert compute.task_seconds == 0
            nursery.start_soon(compute.run, hang)
            await trio.to_thread.run_sync(begun.wait)
            first = compute.task_seconds
            await trio.sleep(0.02)
            assert compute.task_seconds >= first + 0.02
            go_on.set()

    trio.run(main)
