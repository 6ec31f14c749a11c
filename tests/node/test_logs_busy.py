"""An hour of busy nodes in virtual time: whatever happens, no phrase is written more than once a minute."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.heartbeat import beat, watch_health
from node.logs import RepeatFilter
from node.node import Node
from node.systemd import Supervisor
from protocols.life import LifeState
from swarm.mode import Progress
from tests.node.nodes import World, invite_of, open_world

pytestmark = pytest.mark.trio

HOUR_S = 3600.0
STEP_S = 2.0
log = logging.getLogger("tests.busy")


class Busy:
    """A mode that makes a step every two seconds, tells of each, and fails every ten minutes."""

    name = "pipeline"
    task_seconds = 0.0

    def __init__(self) -> None:
        self._step = 0

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        for _ in range(300):
            self._step += 1
            log.info("step committed: step=%d", self._step)
            log.warning("call lost: step=%d", self._step)
            await trio.sleep(STEP_S)
        raise RuntimeError(f"a device that failed in step {self._step}")

    async def drain(self, deadline_s: float) -> None: ...

    def status(self) -> dict[str, Any]:
        return {}

    def progress(self) -> Progress:
        return Progress(in_run=True, step=self._step, peers=3)

    async def export(self, path: Path, options: Any) -> dict[str, Any]:
        raise NotImplementedError


class Written(logging.Handler):
    """Keeps when each phrase was written, in virtual time, behind the same filter as the daemon's."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, str] = {}
        self.times_s: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.counted = 0
        self.addFilter(RepeatFilter(clock_s=lambda record: trio.current_time()))

    def emit(self, record: logging.LogRecord) -> None:
        self.times_s[record.name, str(record.msg)].append(trio.current_time())
        self.last[str(record.msg).partition(":")[0]] = record.getMessage()
        self.counted += getattr(record, "facts", {}).get("repeats_dropped", 0)


@contextmanager
def written() -> Iterator[Written]:
    handler, root = Written(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


async def busy_node(world: World, **flags: Any) -> Node:
    node = await world.node(**flags)
    world.nursery.start_soon(node.services.keep_running, Busy())
    world.nursery.start_soon(beat, node, Supervisor({}))
    world.nursery.start_soon(watch_health, node)
    return node


async def flap(node: Node) -> None:
    """Fall behind and catch up, again and again."""
    while True:
        node.life.needs_state("pipeline", "steps were missed")
        await trio.sleep(3)
        node.life.has_state("pipeline", "caught up")
        await trio.sleep(7)


def test_over_an_hour_no_phrase_is_written_more_than_once_a_minute(tmp_path: Path) -> None:
    async def main() -> Written:
        with written() as found:
            async with open_world(tmp_path) as world:
                node = await busy_node(world, run=world.run_file())
                await world.node(join=invite_of(node))
                world.nursery.start_soon(flap, node)
                await trio.sleep(HOUR_S)
                assert node.life.snapshot.state in (LifeState.SERVING, LifeState.SYNCING)
        return found

    found = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    phrases = {phrase for _, phrase in found.times_s}
    assert {"step committed: step=%d", "call lost: step=%d"} <= phrases
    assert {"state: serving (%s)", "state: syncing (%s)"} <= phrases
    for (name, phrase), times_s in found.times_s.items():
        gaps_s = [after - before for before, after in itertools.pairwise(times_s)]
        assert min(gaps_s, default=60.0) >= 60.0, f"{name}: {phrase}"
    # One line a minute says how the node is, and what was not written is counted.
    beats = next(
        times for (_, phrase), times in found.times_s.items() if phrase.startswith("heartbeat")
    )
    assert 58 <= len(beats) <= 60
    assert ", 1 peers, step 1" in found.last["heartbeat"]
    assert found.counted > 2 * (HOUR_S / STEP_S) * 0.9
