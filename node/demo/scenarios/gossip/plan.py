"""What the gossip demo trains, and when each fault is due."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.runfile import read_run_file
from protocols.run import RunSpec

PEERS: Final = 8
STEPS: Final = 400
BATCH_EVERY_S: Final = 0.1
"""The model is so small that a batch takes a millisecond: at this pace, eight nodes on two cores can push after each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The run, and at which mean number of batches what happens."""

    run: RunSpec
    run_file: Path
    kill_at: int
    join_at: int


def make_plan(run_file: Path, *, steps: int) -> Plan:
    """Write the run file and read it back as every node will."""
    run_file.write_text(run_text(steps), "utf-8")
    return Plan(
        run=read_run_file(run_file),
        run_file=run_file,
        kill_at=steps * 9 // 20,
        join_at=steps // 2,
    )


def run_text(steps: int) -> str:
    """Return the run file."""
    return f"""\
name = "digits"
mode = "gossip"
seed = 2

[data]
kind = "digits"
partition = "dirichlet"
alpha = 0.5
partitions = {PEERS}

[model]
kind = "mlp"
layers = 5
width = 64

[training]
batch = 16
steps = {steps}
evaluate_every = 10

[optimizer]
kind = "sgd"
lr = 0.02
lr_min = 0.0002

[gossip]
batch_every_s = {BATCH_EVERY_S}
neighbours_to_start = {PEERS - 2}
"""
