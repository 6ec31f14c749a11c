"""What one seed came to, small enough to be sent between processes; and the seeds that once failed."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.sim.pipeline.checkers import ViolationError
from tests.sim.pipeline.world import World, run_seed

REGRESSIONS: Final = Path(__file__).parents[1] / "pipeline" / "regressions.txt"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    seed: int
    events: int
    """Events that cores have taken."""
    virtual_s: float
    steps: int
    kinds: tuple[str, ...]
    lost: str | None
    """What the faults took for good, so that the run rightly waits."""
    promise: str | None
    """The promise that was broken; "no error" when a core raised."""
    failure: str | None


def outcome_of(seed: int) -> Outcome:
    """Run one seed to its end, whatever that is."""
    worlds: list[World] = []
    promise = failure = None
    try:
        run_seed(seed, on_world=worlds.append)
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
        world.step,
        world.faults.kinds(),
        world.lost() if failure is None else None,
        promise,
        failure,
    )


def regressions() -> list[int]:
    """Return the seeds that once failed, each line `seed  what it found`."""
    lines = REGRESSIONS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def remember(outcome: Outcome) -> None:
    """Add a failed seed to the regressions, once."""
    if outcome.seed not in regressions():
        with REGRESSIONS.open("a", encoding="utf-8") as file:
            file.write(f"{outcome.seed}  {outcome.promise}: {outcome.failure}\n")
