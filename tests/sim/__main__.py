"""Run many seeds of a mode, or replay one: `python -m tests.sim --seeds 1000 --json`, `python -m tests.sim --replay 12`.

Regressions run first. A failing seed is put among them, and the command that replays it is printed. A branch of a core
that no seed takes fails the run, too, when there are enough seeds to say so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.sim.engine.branches import Branches, find_branches
from tests.sim.engine.runner import Outcome, regressions, replay, run_all, tell
from tests.sim.engine.subject import DEFAULT, MODES, Subject, measured_of, subject_of

SEEDS_FOR_BRANCHES = 1000
"""The rarest branches are taken by one seed in hundreds: with fewer seeds than this, missed ones are told and do not fail."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--mode", choices=MODES, default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--replay", type=int, help="one seed, with every message on stderr")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.mode, options.replay)
    started_s = time.monotonic()
    subject, measured = subject_of(options.mode), measured_of(options.mode)
    wanted = range(options.first, options.first + options.seeds)
    seeds = list(dict.fromkeys([*regressions(subject), *wanted]))
    branches = find_branches(measured.modules)
    outcomes, taken = [], Counter[str]()
    for outcome, marks in run_all(options.mode, seeds):
        outcomes.append(outcome)
        taken.update(branches.taken(marks))
    result = summary(subject, outcomes)
    complaints = check_branches(branches, measured.excused, taken, result)
    result["seconds"] = round(time.monotonic() - started_s, 1)
    if options.json:
        print(json.dumps(result))  # noqa: T201 - the result
    else:
        tell("\n".join(f"{name}: {value}" for name, value in result.items()))
    return 1 if result["violations"] or complaints else 0


def check_branches(
    branches: Branches, excused: Mapping[str, str], taken: Counter[str], result: dict[str, float]
) -> Sequence[str]:
    """Add to the result how many branches were missed; tell which, and return what the run must fail for."""
    missed = [f"branch missed: {text}" for text in branches.missed(taken, excused)]
    stale = [f"excused for nothing: {text}" for text in branches.stale(taken, excused)]
    result["branches"] = len(branches.by_name)
    result["branches_excused"] = len(excused)
    result["branches_missed"] = len(missed)
    tell("".join(f"{line}\n" for line in [*missed, *stale]))
    return [*missed, *stale] if result["seeds"] >= SEEDS_FOR_BRANCHES else stale


def summary(subject: Subject, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Add up what the runs came to, under the names that docs/results.md uses."""
    appeared = Counter(kind for outcome in outcomes for kind in outcome.kinds)
    kinds = [appeared[name] for name in subject.faults.names()]
    return {
        "seeds": len(outcomes),
        "violations": sum(outcome.failure is not None for outcome in outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "virtual_hours": round(sum(outcome.virtual_s for outcome in outcomes) / 3600, 1),
        subject.unit: sum(outcome.progress for outcome in outcomes),
        "runs_that_lost_what_they_need": sum(outcome.lost is not None for outcome in outcomes),
        "fault_kinds": len(kinds),
        "fault_kinds_min": min(kinds),
    }


if __name__ == "__main__":
    sys.exit(main())
