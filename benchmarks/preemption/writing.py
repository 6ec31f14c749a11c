"""What writing checkpoints costs a node that trains as fast as it can."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.preemption.fleet import WAIT_S, section_of
from benchmarks.preemption.runs import write_run
from benchmarks.workers import cpu_seconds_of
from node.errors import NodeError
from node.local import LocalNode

PAIRS: Final = 10
_SPAN_S: Final = 5.0
"""One half of a pair, about. A default node writes every one to two minutes: here writing weighs six times as much or more."""
_CLOSE_S: Final = 0.01


def writing(folder: Path, rng: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Let one node train alone, and compare spans of steps in which it writes with those between, in pairs.

    Half a pair is `span` steps; a checkpoint is due at the first step of every second span.
    """
    run_file = write_run(
        folder / "writing.toml", stages=1, replicas=1, layers=6, width=256, context=64,
    )  # fmt: skip
    flags = ("--run", str(run_file), "--threads", "1", "--nice", "0")
    span = _steps_per_span(folder / "pace", flags)
    every = ("--checkpoint-every-steps", str(2 * span))
    with LocalNode(folder / "w", *flags, *every) as node:
        node.wait_ready()
        with_s, without_s = [], []
        begins = _reach(node, 2 * span)
        before = _costs(node)
        for pair in range(1, PAIRS + 1):
            half = _reach(node, (2 * pair + 1) * span)
            end = _reach(node, (2 * pair + 2) * span)
            with_s.append(half - begins)
            without_s.append(end - half)
            begins = end
        after = _costs(node)
        status = node.ask("status")["services"]["checkpoints"]
        node.stop()
    if after[2] - before[2] < PAIRS:
        raise NodeError(f"{after[2] - before[2]} checkpoints were written in {PAIRS} pairs")
    kept = [w / o for w, o in zip(without_s, with_s, strict=True)]
    say(f"throughput kept, of {PAIRS} pairs: {', '.join(f'{each:.3f}' for each in sorted(kept))}")
    return {
        "pairs": PAIRS,
        "throughput_kept": round(statistics.median(kept), 4),
        "checkpoint_cpu_share": round((after[0] - before[0]) / (after[1] - before[1]), 5),
        "checkpoint_bytes": status["size_bytes"] // status["count"],
        "checkpoint_every_seconds": round(statistics.fmean([*with_s, *without_s]) * 2, 2),
        "checkpoint_write_seconds": status["write_seconds"],
    }


def _steps_per_span(folder: Path, flags: tuple[str, ...]) -> int:
    """Measure how many steps fit into a span."""
    with LocalNode(folder, *flags, "--no-checkpoints") as node:
        node.wait_ready()
        began_s = _reach(node, 10)
        steps = 10
        while time.monotonic() - began_s < _SPAN_S:
            steps += 1
            end_s = _reach(node, steps)
        node.stop()
    return max(2, round(_SPAN_S * (steps - 10) / (end_s - began_s)))


def _reach(node: LocalNode, step: int) -> float:
    """Return when a step was seen to be reached. Raises NodeError when it was not, in time."""
    deadline_s = time.monotonic() + WAIT_S
    while (section_of(node).get("step") or 0) < step:
        if time.monotonic() > deadline_s:
            raise NodeError(f"step {step} was not reached in {WAIT_S:g} s", node.tail())
        time.sleep(_CLOSE_S)
    return time.monotonic()


def _costs(node: LocalNode) -> tuple[float, float, int]:
    """Return processor seconds of checkpoints, of the node and its children, and checkpoints written."""
    checkpoints = node.ask("status")["services"]["checkpoints"]
    all_s = sum(map(cpu_seconds_of, node.family()))
    return float(checkpoints["cpu_seconds"]), all_s, int(checkpoints["written"])
