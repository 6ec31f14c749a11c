"""`python -m node.demo.scenarios.moe.reference_process RUN PEERS MODEL...`: what the swarm is compared with.

One JSON object per line on stdout: {"doing"} while it works, then the comparison.

The reference has every expert in one process and one optimizer. A step takes one batch of each of the undisturbed swarm's
trainers, the very samples that they drew, so it makes as many steps as each of them did.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import nn

from moe.model import build_local, mixtures
from node.runfile import read_run_file
from protocols.experts.spec import MoeSpec
from protocols.ids import PeerID
from protocols.run import ByteTransformerSpec, RunSpec, TextSpec
from swarm.data.text import read_run_text
from swarm.learner.learner import Learner
from swarm.learner.task import Batch, TextTask

RATES: Final = (1.2, 2.0, 3.0)
"""Times the run's own rate. The best of them is compared with."""
HELD_OUT: Final = 512
"""Sequences."""


class LocalTask(TextTask):
    """The run's task with every expert in one process."""

    def build(self, seed: int) -> nn.Module:
        assert isinstance(self._run.model, ByteTransformerSpec)
        return build_local(self._run.model, self._run.settings(MoeSpec), seed)

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        loss = super().loss(module, batch)
        if not module.training:
            return loss
        balance = torch.stack([mixture.balance for mixture in mixtures(module)]).sum()
        return loss + self._run.settings(MoeSpec).balance * balance

    def held_out(self, module: nn.Module) -> float:
        """Return the loss over held-out text, without noise."""
        module.eval()
        try:
            return self.evaluate(module).loss
        finally:
            module.train()


def main(run_file: Path, peers: list[PeerID], models: list[Path]) -> None:
    """Print what is done, and the comparison."""
    torch.set_num_threads(2)
    run = read_run_file(run_file)
    training = dataclasses.replace(run.training, evaluation_samples=HELD_OUT)
    run = dataclasses.replace(run, training=training)
    assert isinstance(run.data, TextSpec)
    task = LocalTask(run, read_run_text(run.data).data)
    _print({"doing": "testing the models of the swarm"})
    found = [_loss_of(run, task, model) for model in models]
    by_rate = {}
    for factor in RATES:
        _print({"doing": f"training in one process at {factor:g} times the rate"})
        by_rate[factor] = _train(run, task, peers, factor)
    _print({"losses": found, "by_rate": list(by_rate.items()), "loss": min(by_rate.values())})


def _loss_of(run: RunSpec, task: LocalTask, model: Path) -> float:
    module = task.build(run.seed)
    module.load_state_dict(load_file(model), strict=True)
    return task.held_out(module)


def _train(run: RunSpec, task: LocalTask, peers: list[PeerID], factor: float) -> float:
    optimizer = run.optimizer
    faster = dataclasses.replace(
        run,
        optimizer=dataclasses.replace(
            optimizer, lr=factor * optimizer.lr, lr_min=factor * optimizer.lr_min
        ),
    )
    drawn = [task.batches(0, salt=bytes(peer)) for peer in peers]

    def batch(index: int) -> Batch:
        parts = [batches(index) for batches in drawn]
        return Batch(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))

    learner = Learner(faster, task, batch, seed=run.seed)
    for _ in range(run.training.steps):
        learner.train_batch()
    return task.held_out(learner.hosted.module)


def _print(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _, run_path, names, *model_paths = sys.argv
    main(
        Path(run_path),
        [PeerID.from_text(name) for name in names.split(",")],
        [Path(path) for path in model_paths],
    )
