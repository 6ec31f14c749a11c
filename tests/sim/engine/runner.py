"""Runs seeds of a mode, in two processes, and says what each came to."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.sim.engine.branches import begin_recording, marks_of
from tests.sim.engine.checker import Checker, ViolationError
from tests.sim.engine.subject import Subject, subject_of
from tests.sim.engine.world import World

PROCESSES: Final = 2
_TELL_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to, small enough to be sent between processes."""

    seed: int
    events: int
    """Events that cores have taken."""
    virtual_s: float
    progress: int
    kinds: tuple[str, ...]
    lost: str | None
    """What the faults took for good, so that the run rightly waits."""
    promise: str | None
    """The promise that was broken; "no error" when a core raised."""
    failure: str | None


def run_seed(
    subject: Subject,
    seed: int,
    *,
    detailed: bool = False,
    checkers: Sequence[type[Checker]] | None = None,
    on_world: Callable[[World[Any]], Any] | None = None,
) -> World[Any]:
    """Run one seed of a mode's standard mix. Raises ViolationError, or whatever a core raises."""
    watched = subject.checkers if checkers is None else checkers
    world = subject.draw(seed, detailed=detailed, checkers=watched)
    world.clock.actions_left = subject.actions_max
    if on_world is not None:
        on_world(world)
    world.run(safety_s=subject.safety_s, liveness_s=subject.liveness_s)
    return world


def outcome_of(subject: Subject, seed: int) -> Outcome:
    """Run one seed to its end, whatever that is."""
    worlds: list[World[Any]] = []
    promise = failure = None
    try:
        run_seed(subject, seed, on_world=worlds.append)
    except ViolationError as error:
        promise, failure = error.promise, error.text
    except Exception as error:  # noqa: BLE001 - a core that raises is a finding, like any other
        where = traceback.extract_tb(error.__traceback__)[-1]
        name = Path(where.filename).name
        promise, failure = "no error", f"{type(error).__name__} at {name}:{where.lineno}: {error}"
    world = worlds[0]
    return Outcome(
        seed,
        world.handled,
        world.clock.now_s,
        world.progress,
        world.faults.kinds(),
        world.lost() if failure is None else None,
        promise,
        failure,
    )


def run_all(mode: str, seeds: Sequence[int]) -> Iterator[tuple[Outcome, bytes]]:
    """Run seeds in two processes, and say how far it is now and then; return with each the branches it marked."""
    told_s = time.monotonic()
    jobs = [(mode, seed) for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(PROCESSES, begin_recording, (mode,)) as pool:
        runs = pool.imap_unordered(_recorded, jobs, chunksize=4)
        for done, (outcome, marks) in enumerate(runs, 1):
            if outcome.failure is not None:
                _report(mode, outcome)
                remember(subject_of(mode), outcome)
            if time.monotonic() - told_s > _TELL_S:
                told_s = time.monotonic()
                tell(f"{done} of {len(seeds)} seeds")
            yield outcome, marks


def _recorded(job: tuple[str, int]) -> tuple[Outcome, bytes]:
    """Run one seed; return what it came to, and the marks it set."""
    mode, seed = job
    outcome = outcome_of(subject_of(mode), seed)
    return outcome, marks_of(mode)


def _report(mode: str, outcome: Outcome) -> None:
    """Say what failed and how to see it again."""
    tell(f"seed={outcome.seed} commit={_commit()} {outcome.promise}: {outcome.failure}")
    tell(f"replay: {replay_command(mode, outcome.seed)}")


def replay_command(mode: str, seed: int) -> str:
    """Return what a person types to see this seed."""
    return f".venv/bin/python -m tests.sim --mode {mode} --replay {seed}"


def replay(mode: str, seed: int) -> int:
    """Run one seed again and print its trace, one line per event."""
    worlds: list[World[Any]] = []
    try:
        run_seed(subject_of(mode), seed, detailed=True, on_world=worlds.append)
    finally:
        world = worlds[0]
        tell("\n".join(world.trace))
        tell(f"faults: {world.faults}")
        tell(world.described())
    tell(f"seed={seed} keeps every promise; lost: {world.lost()}")
    return 0


def regressions(subject: Subject) -> list[int]:
    """Return the seeds that once failed, each line `seed  what it found`."""
    lines = subject.regressions.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def remember(subject: Subject, outcome: Outcome) -> None:
    """Add a failed seed to the regressions, once."""
    if outcome.seed not in regressions(subject):
        with subject.regressions.open("a", encoding="utf-8") as file:
            file.write(f"{outcome.seed}  {outcome.promise}: {outcome.failure}\n")


def _commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def tell(text: str) -> None:
    """Write progress to stderr: stdout is for the result."""
    sys.stderr.write(text + "\n")
