"""What leaving and coming back costs: `python -m benchmarks.preemption --json`.

Real daemons on this machine, a pipeline of three stages with two replicas each: nodes are asked to leave and killed at
random moments, all of them lose power at once, at last fewer start again, or another split of stages; then what writing
checkpoints costs. Within fifteen minutes on two cores. Exit 1 when a bound is broken.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.preemption.leaving import TERMS, leaving
from benchmarks.preemption.other_split import other_split
from benchmarks.preemption.power_loss import LOSSES, power_loss
from benchmarks.preemption.writing import writing
from benchmarks.workers import processor

AT_MOST: Final[dict[str, float]] = {
    "drain_seconds_p50": 3.0,
    "drain_seconds_max": 25.0,
    "drain_exit_codes_other_than_0": 0,
    "microbatches_lost": 0,
    "recovery_seconds_p50": 1.5,
    "loss_ratio_to_unbroken": 1.01,
    "parameter_difference": 0.0,
    "parameter_difference_other_split": 0.0,
    "checkpoint_cpu_share": 0.02,
    "restart_to_serving_seconds_p50": 10.0,
    "seconds": 900.0,
}
AT_LEAST: Final[dict[str, float]] = {
    "drains": TERMS,
    "resumed": LOSSES,
    "throughput_kept": 0.95,
}
PARTS: Final[dict[str, Callable[[Path, random.Random, Callable[[str], None]], dict[str, Any]]]] = {
    "leaving": leaving,
    "power-loss": power_loss,
    "other-split": other_split,
    "writing": writing,
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (it always does).")
@click.option("--only", type=click.Choice(list(PARTS)), help="One part; its bounds alone count.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments.")
def main(*, as_json: bool, only: str | None, seed: int) -> None:
    """Measure, print, and exit 1 when a bound is broken."""
    began_s = time.monotonic()
    result: dict[str, Any] = {}
    # A short path: a unix socket's has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="murmura-") as name:
        for part, measure in PARTS.items():
            if only in (None, part):
                result |= measure(Path(name), random.Random(seed), _say)
    result["seconds"] = round(time.monotonic() - began_s, 1)
    broken = list(_broken(result, whole=only is None))
    result |= {"ok": not broken, "seed": seed, **processor()}
    print(json.dumps(result))
    for line in broken:
        _say(line)
    sys.exit(1 if broken else 0)


def _broken(result: dict[str, Any], *, whole: bool) -> list[str]:
    """Return a sentence for every bound that is broken, or was not measured though all of them should have been."""
    bounds = [(key, "at most", bound) for key, bound in AT_MOST.items()]
    bounds += [(key, "at least", bound) for key, bound in AT_LEAST.items()]
    if "steps_lost_allowed" in result:
        bounds.append(("steps_lost_max", "at most", result["steps_lost_allowed"]))
    return [
        f"{key} is {result.get(key)}, not {kind} {bound}"
        for key, kind, bound in bounds
        if (whole or key in result) and not _holds(result.get(key), kind, bound)
    ]


def _holds(found: Any, kind: str, bound: float) -> bool:
    if found is None:
        return False
    return bool(found <= bound if kind == "at most" else found >= bound)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
