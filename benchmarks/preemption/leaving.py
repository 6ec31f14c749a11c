"""One node goes and comes back while the others train: by SIGTERM, by SIGKILL."""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.preemption.fleet import Fleet, names_of, section_of, serves
from benchmarks.preemption.runs import MICROBATCHES, STAGES, write_run
from node.demo.scenarios.pipeline.accounts import merge_journals
from protocols.ledger.view import Record, View, coverage_problem

TERMS: Final = 20
KILLS: Final = 7
_MOMENT_S: Final = 1.0
"""A signal comes at a random moment of this span: several steps."""


def leaving(folder: Path, rng: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Drain and kill nodes of one swarm, one at a time, each of which comes back before the next goes."""
    run_file = write_run(folder / "leaving.toml")
    with Fleet(folder / "l", run_file, names_of()) as fleet:
        fleet.start()
        fleet.wait_whole()
        fleet.wait_steps(5)
        drains, codes, returns = [], [], []
        for _ in range(TERMS):
            name = _after_a_moment(fleet, rng)
            node = fleet.end(name)
            began_s = time.monotonic()
            codes.append(node.end(signal.SIGTERM, 60.0))
            drains.append(time.monotonic() - began_s)
            node.close()
            returns.append(_come_back(fleet, name))
        say(f"drains: {_listed(drains)} s, exit codes {sorted(set(codes))}")
        recoveries = []
        for _ in range(KILLS):
            name = _after_a_moment(fleet, rng)
            recoveries.append(_kill(fleet, name))
            returns.append(_come_back(fleet, name))
        say(f"recoveries after SIGKILL: {_listed(recoveries)} s")
        say(f"from start to serving: {_listed(returns)} s")
        fleet.wait_steps(5)
        fleet.kill_all()
        lost, checked = microbatches_lost(fleet.journals())
    say(f"{lost} microbatches lost or counted again in {checked} steps")
    return {
        "drains": len(drains),
        "drain_seconds_p50": round(statistics.median(drains), 3),
        "drain_seconds_max": round(max(drains), 3),
        "drain_exit_codes_other_than_0": sum(1 for code in codes if code),
        "microbatches_lost": lost,
        "steps_checked": checked,
        "kills": len(recoveries),
        "recovery_seconds_p50": round(statistics.median(recoveries), 3),
        "recovery_seconds_max": round(max(recoveries), 3),
        "restart_to_serving_seconds_p50": round(statistics.median(returns), 3),
        "restart_to_serving_seconds_max": round(max(returns), 3),
    }


def _after_a_moment(fleet: Fleet, rng: random.Random) -> str:
    """Let some steps pass, and choose who goes."""
    fleet.wait_steps(2)
    time.sleep(rng.uniform(0.0, _MOMENT_S))
    return rng.choice(fleet.names)


def _kill(fleet: Fleet, name: str) -> float:
    """SIGKILL one; return the seconds until all others have committed the step that was in progress."""
    node = fleet.end(name)
    node.family()
    began_s = time.monotonic()
    node.process.kill()
    fleet.wait_step_everywhere(fleet.step() + 1)
    seconds = time.monotonic() - began_s
    node.close()
    return seconds


def _come_back(fleet: Fleet, name: str) -> float:
    """Start one again; return the seconds until it serves its stage, the others training meanwhile."""
    fleet.start(name)
    node = fleet.nodes[name]
    fleet.wait(f"{name} to serve again", lambda: serves(section_of(node)), every_s=0.05)
    return time.monotonic() - node.started_s


def microbatches_lost(journals: Sequence[Sequence[Record]]) -> tuple[int, int]:
    """Return how many steps do not count every microbatch once at every stage, each as one lost, and the steps looked at.

    So does a record that nodes disagree about, or that does not follow from the one before: then nothing is proved.
    """
    records, problems = merge_journals(journals)
    lost, checked = len(problems), 0
    for before, record in itertools.pairwise(records):
        if record.commits_step:
            checked += 1
            view = View(before.members)
            if coverage_problem(record, view, microbatches=MICROBATCHES, stages=STAGES):
                lost += 1
    return lost, checked


def _listed(seconds: Sequence[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in sorted(seconds))
