"""What the demo of remote experts trains, and when each fault is due."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.errors import NodeError
from node.runfile import read_run_file
from protocols.run import RunSpec, TextSpec
from swarm.data.errors import DataError
from swarm.data.text import read_text

NODES: Final = 5
STEPS: Final = 220
"""Of each trainer: as many as two swarms and three trainings in one process have time for in seven minutes."""
GRID: Final = (4, 4)
LAYERS: Final = 2
STDLIB: Final = "{stdlib}/*.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The run, and at which mean number of batches what happens."""

    run: RunSpec
    run_file: Path
    kill_at: int
    join_at: int


def make_plan(run_file: Path, *, data: str, steps: int) -> Plan:
    """Write the run file and read it back as every node will. Raises NodeError when there is no such text."""
    pattern = str(Path(data).expanduser().absolute()) if data else STDLIB
    try:
        text = read_text(pattern, bytes_max=TextSpec(pattern=pattern, sha256="0" * 64).bytes_max)
    except DataError as error:
        raise NodeError(str(error), "--data takes any text file or folder") from error
    run_file.write_text(_run_text(pattern, text.sha256, steps), "utf-8")
    return Plan(
        run=read_run_file(run_file),
        run_file=run_file,
        kill_at=steps // 2,
        join_at=steps * 3 // 5,
    )


def _run_text(pattern: str, sha256: str, steps: int) -> str:
    # A JSON string is a TOML basic string, whatever is in the path.
    return f"""\
name = "experts"
mode = "moe"
seed = 1

[data]
kind = "text"
pattern = {json.dumps(pattern)}
sha256 = "{sha256}"

[model]
kind = "byte-transformer"
layers = {LAYERS}
width = 64
heads = 4
context = 64

[optimizer]
kind = "adamw"
lr = 0.01
lr_min = 0.001

[training]
batch = 8
steps = {steps}
evaluate_every = 50
evaluation_samples = 16

[moe]
grid = {list(GRID)}
k = 2
hidden = 256
nodes_to_start = {NODES}
expert_steps = {NODES * steps}
expert_rate = 0.4
snapshot_every_s = 3
announced_s = 30
refresh_s = 1
"""
