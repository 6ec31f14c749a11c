"""Deliberate faults in the cores, one at a time, each to be caught by the checker named for it: `python -m tests.sim.planted`.

A checker that cannot fail is worth nothing. Each fault is one that a hurried change could bring in.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from tests.sim.engine.planted import Catch, catch_all
from tests.sim.engine.runner import tell
from tests.sim.engine.subject import MODES, suite_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Catch every fault; return 1 when one escapes."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.planted", description=__doc__)
    parser.add_argument("--mode", choices=MODES, help="faults of this mode only")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    started_s = time.monotonic()
    modes = MODES if options.mode is None else (options.mode,)
    jobs = [
        (mode, index)
        for mode in modes
        for index, planted in enumerate(suite_of(mode))
        if options.only in planted.name
    ]
    if not jobs:
        parser.error(f"no planted fault has {options.only!r} in its name")
    catches: list[Catch] = []
    for found in catch_all(jobs):
        catches.append(found)
        tell(_told(found))
    caught = [found.seeds_needed for found in catches if found.seeds_needed is not None]
    result = {
        "planted": len(catches),
        "caught": len(caught),
        "worst_seeds_needed": max(caught, default=0),
        "seconds": round(time.monotonic() - started_s, 1),
    }
    print(json.dumps(result) if options.json else result)  # noqa: T201 - the result
    return 0 if len(caught) == len(catches) else 1


def _told(found: Catch) -> str:
    seeds = f"{found.seeds_needed:4d} seeds" if found.seeds_needed else "NOT CAUGHT"
    told = f"{seeds:>10} {found.seconds:6.1f} s  {found.mode} {found.promise:<24} {found.name}"
    return told if found.seeds_needed or found.error is None else f"{told} ({found.error})"


if __name__ == "__main__":
    sys.exit(main())
