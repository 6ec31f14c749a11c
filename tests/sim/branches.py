"""Which branches of the ledger's cores no seed takes: `python -m tests.sim.branches --seeds 60`.

A branch that the simulator never takes is a branch it proves nothing about. Those it cannot take are excused below, each
with its reason; every other one that is missed is a fault or a case the simulator lacks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import coverage

ROOT: Final = Path(__file__).parents[2]
CORES: Final = "protocols/ledger/*.py"
SHELL_ONLY: Final = ("calls.py",)
"""Used by the shells alone: the wire form of calls."""

EXCUSED: Final[dict[tuple[str, str], str]] = {}
"""(file, source line the branch leaves from) -> why no seed can take it."""


def missed_branches(seeds: Sequence[int]) -> list[str]:
    """Run seeds in a process of their own with branches recorded; return one line per branch that none took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (list(seeds),))


def _measure(seeds: list[int]) -> list[str]:
    recorder = coverage.Coverage(branch=True, include=[str(ROOT / CORES)], data_file=None)
    recorder.start()
    # Imported under the recorder, so that it sees the cores from their first line on.
    from tests.sim.outcome import outcome_of

    for seed in seeds:
        outcome_of(seed)
    recorder.stop()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        recorder.json_report(outfile=str(report), ignore_errors=True)
        files = json.loads(report.read_text(encoding="utf-8"))["files"]
    missed = []
    for name in sorted(files):
        path = ROOT / name
        if path.name in SHELL_ONLY:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for source, target in files[name]["missing_branches"]:
            text = lines[source - 1].strip()
            if (path.name, text) not in EXCUSED:
                where = f"line {target}" if target > 0 else "the end"
                missed.append(f"{path.name}:{source} to {where}: {text}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is missed, and how many."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.branches", description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(arguments)
    missed = missed_branches(range(options.first, options.first + options.seeds))
    sys.stderr.write("".join(f"{line}\n" for line in missed))
    print(json.dumps({"branches_missed": len(missed)}))  # noqa: T201 - the result
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
