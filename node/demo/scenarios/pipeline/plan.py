"""What the demo trains, and at which step each fault is due. Pure, apart from reading the text to hash it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from node.errors import NodeError
from node.runfile import read_run_file
from protocols.run import RunSpec, TextSpec
from protocols.run.pipeline import pipeline_of
from swarm.data.errors import DataError
from swarm.data.sequences import Dataset
from swarm.data.text import read_text
from swarm.pipeline.data import dataset_of

STEPS: Final = 120
STAGES: Final = 3
REPLICAS: Final = 2
MICROBATCHES: Final = 8
SEQUENCES: Final = 4
CONTEXT: Final = 112
"""120 steps x 8 x 4 x 112 = 430,080 tokens. Four sequences to a call, because a call costs the same for one."""
STDLIB: Final = "{stdlib}/*.py"
"""Text that every machine with Python has. Without the packages: 4.7 MB are read sooner than 16."""
STEPS_TO_JOIN: Final = 60
"""A node that joins late needs some ten seconds to start; a shorter run is over before it has served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The run, and when what happens: steps that are committed by then."""

    run: RunSpec
    run_file: Path
    kill_node_at: int
    kill_trainer_at: int
    join_at: int | None
    """None: the run is too short for somebody to join it."""

    @property
    def tokens(self) -> int:
        pipeline = pipeline_of(self.run)
        return pipeline.steps * self.step_tokens

    @property
    def step_tokens(self) -> int:
        pipeline = pipeline_of(self.run)
        return pipeline.microbatches * pipeline.sequences * pipeline.model.context


def make_plan(
    run_file: Path, *, data: str, steps: int, dtype: Literal["float32", "float64"]
) -> Plan:
    """Write the run file and read it back as every node will.

    Args:
      data: a file, folder or glob; empty takes the standard library's sources.
    Raises:
      NodeError: there is no such text, or too little of it.
    """
    pattern = str(Path(data).expanduser().absolute()) if data else STDLIB
    try:
        text = read_text(pattern, bytes_max=TextSpec(pattern=pattern, sha256="0" * 64).bytes_max)
        run_file.write_text(_run_text(pattern, text.sha256, steps=steps, dtype=dtype), "utf-8")
        run = read_run_file(run_file)
        dataset_of(text.data, run, Dataset)
    except DataError as error:
        raise NodeError(str(error), "--data takes any text file or folder") from error
    return Plan(
        run=run,
        run_file=run_file,
        kill_node_at=max(1, steps // 4),
        kill_trainer_at=max(2, steps // 2),
        join_at=steps * 2 // 3 if steps >= STEPS_TO_JOIN else None,
    )


def _run_text(pattern: str, sha256: str, *, steps: int, dtype: str) -> str:
    # A JSON string is a TOML basic string, whatever is in the path.
    return f"""\
name = "demo"
seed = 1

[data]
pattern = {json.dumps(pattern)}
sha256 = "{sha256}"

[model]
context = {CONTEXT}
dtype = "{dtype}"

[pipeline]
stages = {STAGES}
replicas_to_start = {REPLICAS}
microbatches = {MICROBATCHES}

[training]
batch = {MICROBATCHES * SEQUENCES}
steps = {steps}
evaluation_samples = {8 * SEQUENCES}
"""
