"""Run every check in order, cheapest first, each against its time budget: `python -m tests.tiers`.

A tier over its budget fails, even when its tests pass: a suite that has become slow stops being run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tier:
    """One command and the seconds it may take on 2 cores."""

    name: str
    command: tuple[str, ...]
    budget_s: float


_PYTEST = ("-m", "pytest", "-q")

TIERS = (
    Tier("format", ("-m", "ruff", "format", "--check", "."), 10),
    Tier("lint", ("-m", "ruff", "check", "."), 10),
    Tier("types", ("-m", "mypy"), 90),
    Tier("pure", (*_PYTEST, "-m", "not trio and not sim and not process"), 80),
    Tier("simulator", (*_PYTEST, "-m", "sim"), 110),
    Tier("trio", (*_PYTEST, "-m", "trio and not soak"), 120),
    Tier("processes", (*_PYTEST, "-m", "process and not soak"), 180),
)


def main() -> int:
    """Run all tiers, even after a failure, and return the exit code."""
    rows = []
    for tier in TIERS:
        print(f"== {tier.name}", flush=True)  # noqa: T201 - this command's output
        started_s = time.monotonic()
        code = subprocess.run([sys.executable, *tier.command], check=False).returncode
        seconds = time.monotonic() - started_s
        verdict = "failed" if code else "over budget" if seconds > tier.budget_s else "ok"
        rows.append((tier, seconds, verdict))
    print(f"\n{'tier':<12}{'seconds':>9}{'budget':>9}  verdict")  # noqa: T201
    for tier, seconds, verdict in rows:
        print(f"{tier.name:<12}{seconds:>9.1f}{tier.budget_s:>9.0f}  {verdict}")  # noqa: T201
    return 0 if all(verdict == "ok" for _, _, verdict in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
