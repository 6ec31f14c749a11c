"""`python -m node.demo.scenarios.collective.reference_process RUN MODEL...`: what the swarm is compared with.

One JSON object per line on stdout: {"doing"} while it works, then the comparison.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from node.demo.scenarios.collective.plan import PEERS
from node.runfile import read_run_file
from protocols.run import RunSpec
from swarm.learner.learner import Learner
from swarm.learner.task import Task, open_task

HELD_OUT: Final = 512
"""Sequences."""


def main(run_file: Path, models: list[Path]) -> None:
    """Print what is done, and the comparison."""
    torch.set_num_threads(2)
    run = read_run_file(run_file)
    training = dataclasses.replace(
        run.training, batch=PEERS * run.training.batch, evaluation_samples=HELD_OUT
    )
    run = dataclasses.replace(run, training=training)
    task = open_task(run)
    _print({"doing": "testing the models of the swarm"})
    found = [load_file(model) for model in models]
    before = task.build(run.seed)
    losses = [_loss_of(run, task, tensors) for tensors in found]
    _print({"doing": "training in one process on as many samples, averaging every gradient"})
    learner = Learner(run, task, task.batches(0, salt=b"one process"), seed=run.seed)
    for _ in range(run.training.steps):
        learner.train_batch()
    _print(
        {
            "losses": losses,
            "loss_before": task.evaluate(before).loss,
            "loss": learner.evaluate().loss,
            "differ": max((_difference(found[0], other) for other in found[1:]), default=0.0),
            "parameters": learner.flat.numel(),
        }
    )


def _loss_of(run: RunSpec, task: Task, tensors: dict[str, Tensor]) -> float:
    module = task.build(run.seed)
    module.load_state_dict(tensors, strict=True)
    return task.evaluate(module).loss


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def _print(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _, run_path, *model_paths = sys.argv
    main(Path(run_path), [Path(path) for path in model_paths])
