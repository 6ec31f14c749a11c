"""Nodes that come, are killed in the middle of a step, stopped, or drained, by a seed, around some that stay.

Those that stay are enough to decide without the others, whatever happens to them at once; they are looked at.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from node import exit_codes
from node.errors import NodeError
from node.limits import family
from tests.processes.forked import ForkedDaemon
from tests.processes.points import POINTS, done_in_step, order
from tests.processes.swarm import ProcessSwarm, child, pipeline
from tests.soak.flat import Held, early_and_late

STAYING: Final = 4
PASSING: Final = 3
"""At most so many at once, fewer than stay: those who stay are a majority without them."""
SAMPLE_EVERY_S: Final = 5.0
SAY_EVERY_S: Final = 30.0
_AT_POINT_S: Final = 5.0
"""Some nodes never get to some points: then it happens to them wherever they are."""


class Churn:
    """One run of it."""

    def __init__(self, swarm: ProcessSwarm, *, seed: int, minutes: float) -> None:
        self.done: Counter[str] = Counter()
        self.held: dict[str, Held] = {}
        self._swarm = swarm
        self._rng = random.Random(seed)
        self._seconds = minutes * 60
        self._staying: list[ForkedDaemon] = []
        self._passing: list[ForkedDaemon] = []
        self._sampled_s = self._said_s = self._began_s = time.monotonic()

    def run(self) -> None:
        """Let nodes come and go until the time is over; then all that are left leave in good order."""
        swarm = self._swarm
        self._staying = [swarm.start(f"stays{k}") for k in range(STAYING)]
        swarm.wait_whole()
        self._began_s = time.monotonic()
        while time.monotonic() - self._began_s < self._seconds:
            self._act()
            self._let_pass(self._rng.randrange(5, 30))
        for node in self._passing:
            self._drain(node)
        swarm.wait_whole()

    # --- what happens ---

    def _act(self) -> None:
        rng = self._rng
        if not self._passing or (len(self._passing) < PASSING and rng.random() < 0.5):
            self._come()
            return
        what: Callable[[ForkedDaemon], None] = rng.choices(
            (self._kill, self._kill_all, self._drain, self._stop, self._kill_child),
            weights=(6, 1, 3, 2, 1),
        )[0]
        what(rng.choice(self._passing))

    def _come(self) -> None:
        hosts = self._rng.random() < 0.75
        name = f"passes{self.done['came']}"
        self.done["came"] += 1
        node = self._swarm.start(name, *(() if hosts else ("--no-host",)))
        self._passing.append(node)
        if self._rng.random() < 0.8:  # sometimes what comes next finds it half-way in
            self._swarm.wait(lambda: pipeline(node)["member"] or not hosts)

    def _kill(self, node: ForkedDaemon) -> None:
        """SIGKILL, at a point of a step if the node gets there."""
        self._passing.remove(node)
        node.family()
        order(node.witness, self._rng.choice(POINTS).name, step=self._step())
        deadline_s = time.monotonic() + _AT_POINT_S
        while node.process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        self.done["killed at a point" if done_in_step(node.witness) else "killed"] += 1
        node.kill()
        assert node.left_behind() == set()

    def _kill_all(self, _: ForkedDaemon) -> None:
        for node in list(self._passing):
            self._passing.remove(node)
            node.family()
            node.kill()
            self.done["killed at once"] += 1

    def _drain(self, node: ForkedDaemon) -> None:
        if node in self._passing:
            self._passing.remove(node)
        code = node.stop(60.0)
        assert code == exit_codes.OK, f"exit code {code}: {node.tail()}"
        self.done["drained"] += 1

    def _stop(self, node: ForkedDaemon) -> None:
        node.process.send_signal(signal.SIGSTOP)
        try:
            self._let_pass(self._rng.randrange(5, 40))
        finally:
            node.process.send_signal(signal.SIGCONT)
        self.done["stopped"] += 1

    def _kill_child(self, node: ForkedDaemon) -> None:
        """p2pd or the dht process, once there is one."""
        try:
            pid = child(node, self._rng.choice(("p2pd", "dht")))
        except NodeError:
            return  # it has only just begun
        if pid and pid in family(node.process.pid):
            os.kill(pid, signal.SIGKILL)
            self.done["child killed"] += 1

    # --- what is looked at ---

    def _step(self) -> int:
        return self._swarm.step(self._staying[0])

    def _let_pass(self, steps: int) -> None:
        """Wait for so many steps, and look meanwhile."""
        goal = self._step() + steps

        def reached() -> bool:
            self._look()
            return self._step() >= goal

        self._swarm.wait(reached)

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._sampled_s >= SAMPLE_EVERY_S:
            self._sampled_s = now_s
            for k, node in enumerate(self._staying):
                status = node.ask("status")
                for what, pid in (
                    ("daemon", node.process.pid),
                    ("p2pd", status["network"]["transport"]["pid"]),
                    ("dht", status["services"]["directory"]["pid"]),
                ):
                    if pid:
                        self.held.setdefault(f"stays{k} {what}", Held()).look(pid)
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            self._say()

    def _say(self) -> None:
        memory = max((held.memory_bytes[-1] for held in self.held.values()), default=0)
        most = max((held.descriptors[-1] for held in self.held.values()), default=0)
        print(  # noqa: T201 - progress
            f"{(time.monotonic() - self._began_s) / 60:5.1f} min  step {self._step():6}"
            f"  {memory / 2**20:.0f} MiB and {most} descriptors at most  {dict(self.done)}",
            file=sys.stderr,
            flush=True,
        )

    def result(self) -> dict[str, Any]:
        """Return what came of it; `problems` is empty when every step was counted once and what is held stays flat."""
        problems = [
            f"{name}: {problem}"
            for name, held in self.held.items()
            if (problem := held.problem()) is not None
        ]
        steps, checked = self._step(), 0
        try:
            checked = self._swarm.check_history()
        except AssertionError as error:
            problems.append(str(error))
        # Those who stay are there from the start: no step but the first, which has no record before it, is left out.
        if checked < steps - 1:
            problems.append(f"{checked} of {steps} steps were counted once")
        growth = {
            name: {
                "memory_mib": [
                    round(value / 2**20, 1) for value in early_and_late(held.memory_bytes)
                ],
                "descriptors": list(early_and_late(held.descriptors)),
            }
            for name, held in self.held.items()
            if len(held.memory_bytes) >= 5
        }
        return {
            "steps": steps,
            "steps_counted_once": checked,
            "events": dict(self.done),
            "early_and_late": growth,
            "problems": problems,
        }
