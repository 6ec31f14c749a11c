"""Run many seeds, or replay one: `python -m tests.sim --seeds 1000 --json`, `python -m tests.sim --replay 12`.

Regressions run first. A failing seed is put among them, and the command that replays it is printed. A branch of a core
that no seed takes fails the run, too, when there are enough seeds to say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.sim.engine.branches import EXCUSED, Branches, begin_recording, find_branches, recorded
from tests.sim.engine.outcome import Outcome, regressions, remember
from tests.sim.pipeline.faults import Faults
from tests.sim.pipeline.world import World, run_seed

PROCESSES = 2
SEEDS_FOR_BRANCHES = 1000
"""The rarest branches are taken by one seed in hundreds: with fewer seeds than this, missed ones are told and do not fail."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replay", type=int, help="one seed, with every message on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    started_s = time.monotonic()
    seeds = list(
        dict.fromkeys([*regressions(), *range(options.first, options.first + options.seeds)])
    )
    branches = find_branches()
    outcomes, taken = [], Counter[str]()
    for outcome, marks in run_all(seeds):
        outcomes.append(outcome)
        taken.update(branches.taken(marks))
    result = summary(outcomes)
    complaints = check_branches(branches, taken, result)
    result["seconds"] = round(time.monotonic() - started_s, 1)
    if options.json:
        print(json.dumps(result))  # noqa: T201 - the result
    else:
        tell("\n".join(f"{name}: {value}" for name, value in result.items()))
    return 1 if result["violations"] or complaints else 0


def check_branches(
    branches: Branches, taken: Counter[str], result: dict[str, float]
) -> Sequence[str]:
    """Add to the result how many branches were missed; tell which, and return what the run must fail for."""
    missed = [f"branch missed: {text}" for text in branches.missed(taken, EXCUSED)]
    stale = [f"excused for nothing: {text}" for text in branches.stale(taken, EXCUSED)]
    result["branches"] = len(branches.by_name)
    result["branches_excused"] = len(EXCUSED)
    result["branches_missed"] = len(missed)
    tell("".join(f"{line}\n" for line in [*missed, *stale]))
    return [*missed, *stale] if result["seeds"] >= SEEDS_FOR_BRANCHES else stale


def run_all(seeds: Sequence[int]) -> Iterator[tuple[Outcome, bytes]]:
    """Run seeds in two processes, and say how far it is now and then; return with each the branches it marked."""
    told_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(PROCESSES, begin_recording) as pool:
        runs = pool.imap_unordered(recorded, seeds, chunksize=4)
        for done, (outcome, marks) in enumerate(runs, 1):
            if outcome.failure is not None:
                report(outcome)
                remember(outcome)
            if time.monotonic() - told_s > 10:
                told_s = time.monotonic()
                tell(f"{done} of {len(seeds)} seeds")
            yield outcome, marks


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Add up what the runs came to, under the names that docs/results.md uses."""
    appeared = Counter(kind for outcome in outcomes for kind in outcome.kinds)
    kinds = [appeared[field.name] for field in dataclasses.fields(Faults)]
    return {
        "seeds": len(outcomes),
        "violations": sum(outcome.failure is not None for outcome in outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "virtual_hours": round(sum(outcome.virtual_s for outcome in outcomes) / 3600, 1),
        "steps": sum(outcome.steps for outcome in outcomes),
        "runs_that_lost_a_stage_or_majority": sum(outcome.lost is not None for outcome in outcomes),
        "fault_kinds": len(kinds),
        "fault_kinds_min": min(kinds),
    }


def report(outcome: Outcome) -> None:
    """Say what failed and how to see it again."""
    tell(f"seed={outcome.seed} commit={commit()} {outcome.promise}: {outcome.failure}")
    tell(f"replay: .venv/bin/python -m tests.sim --replay {outcome.seed}")


def replay(seed: int) -> int:
    """Run one seed again and print its trace, one line per event."""
    worlds: list[World] = []
    try:
        run_seed(seed, detailed=True, on_world=worlds.append)
    finally:
        tell("\n".join(worlds[0].trace))
        tell(f"faults: {worlds[0].faults}")
        tell(f"settings: {worlds[0].settings}")
    tell(f"seed={seed} keeps every promise; lost: {worlds[0].lost()}")
    return 0


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def tell(text: str) -> None:
    """Write progress to stderr: stdout is for the result."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
