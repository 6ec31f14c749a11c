"""The runs that the benchmark trains, over a text that is there on every machine: the standard library's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swarm.data.text import read_text

PATTERN: Final = "{stdlib}/*.py"
STAGES: Final = 3
REPLICAS: Final = 2
MICROBATCHES: Final = 8
FOREVER: Final = 1_000_000

_RUN: Final = """\
name = "preemption"
[data]
pattern = "{pattern}"
sha256 = "{sha256}"
[model]
layers = {layers}
width = {width}
heads = 4
context = {context}
[pipeline]
stages = {stages}
microbatches = {microbatches}
replicas_to_start = {replicas}
[training]
batch = {batch}
steps = {steps}
evaluate_every = {evaluate_every}
evaluation_samples = 16
"""


def write_run(
    path: Path,
    *,
    steps: int = FOREVER,
    stages: int = STAGES,
    replicas: int = REPLICAS,
    layers: int = 3,
    width: int = 64,
    context: int = 64,
    microbatches: int = MICROBATCHES,
    evaluate_every: int = 0,
    start: str = "",
) -> Path:
    """Write a run file.

    Args:
      start: its `[start]` table, if it begins from a checkpoint of another run.
    """
    text = read_text(PATTERN, bytes_max=16 << 20)
    path.write_text(
        _RUN.format(
            pattern=PATTERN,
            sha256=text.sha256,
            layers=layers,
            width=width,
            context=context,
            stages=stages,
            microbatches=microbatches,
            replicas=replicas,
            batch=2 * microbatches,
            steps=steps,
            evaluate_every=evaluate_every,
        )
        + start
    )
    return path
