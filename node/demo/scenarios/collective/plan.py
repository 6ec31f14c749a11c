"""What the demo of outer steps trains, and when each fault is due."""

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

PEERS: Final = 4
STEPS: Final = 1200
"""Local steps of each peer: two minutes for four of them on two cores. Forty rounds: the papers' outer momentum is for more."""
STDLIB: Final = "{stdlib}/*.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The run, and after which step what happens."""

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
        kill_at=steps * 2 // 5,
        join_at=steps // 2,
    )


def _run_text(pattern: str, sha256: str, steps: int) -> str:
    # A JSON string is a TOML basic string, whatever is in the path.
    return f"""\
name = "outer steps"
mode = "collective"
seed = 1

[data]
kind = "text"
pattern = {json.dumps(pattern)}
sha256 = "{sha256}"

[model]
kind = "byte-transformer"
layers = 2
width = 64
heads = 4
context = 64

[training]
batch = 8
steps = {steps}
evaluate_every = 100
evaluation_samples = 64

[optimizer]
kind = "adamw"
lr = 1e-2
lr_min = 1e-3
warmup_steps = 20

[collective]
local_steps = 30
outer_rate = 0.7
outer_momentum = 0.6
fragments = 2
overlap_steps = 1
overlap_steps_max = 5
codec = "e3m0"
peers_to_start = {PEERS}
"""
