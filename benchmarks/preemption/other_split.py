"""A run of three stages goes on as a run of two, on the same disks: the parameters at the step resumed are the same."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.preemption.fleet import Fleet, names_of
from benchmarks.preemption.models import checkpoint_model, difference, live_model
from benchmarks.preemption.runs import write_run
from node.errors import NodeError
from node.local import MURMURA

_EVERY_STEPS: Final = 8
_STEPS: Final = 24


def other_split(folder: Path, rng: random.Random, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, kill all nodes, start them again with another run file, and compare before anybody trains."""
    run_file = write_run(folder / "split.toml")
    with Fleet(
        folder / "s", run_file, names_of(), "--checkpoint-every-steps", str(_EVERY_STEPS)
    ) as fleet:
        fleet.start()
        fleet.wait_whole()
        fleet.wait_steps(_STEPS)
        fleet.kill_all()
        disks = [fleet.folder / name for name in fleet.names]
        start = _newest_start(disks)
        checkpoint_model(disks, folder / "before.safetensors", start["step"])
        table = f'[start]\nrun = "{start["run"]}"\nstep = {start["step"]}\nsha256 = "{start["sha256"]}"\n'
        write_run(run_file, stages=2, start=table)
        fleet.start(flags=("--no-train",))
        fleet.wait_whole()
        live = live_model(next(iter(fleet.nodes.values())), folder / "after.safetensors")
    if live["step"] != start["step"]:
        raise NodeError(f"the new run is at step {live['step']}, not at {start['step']}")
    apart = difference(folder / "after.safetensors", folder / "before.safetensors")
    say(f"three stages go on as two from step {start['step']}: parameters differ by {apart}")
    return {"parameter_difference_other_split": apart}


def _newest_start(disks: list[Path]) -> dict[str, Any]:
    first, *others = map(str, disks)
    also = [word for folder in others for word in ("--also", folder)]
    command = [*MURMURA, "checkpoints", "list", "--json", "--state-dir", first, *also]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["starts"]
    if not found:
        raise NodeError("no step is whole on the disks")
    newest: dict[str, Any] = found[0]
    return newest
