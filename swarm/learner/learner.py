"""One peer's whole model in training. Used from one thread, the compute thread; knows nothing of other peers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.run import RunSpec
from swarm.hosting.module import HostedModule
from swarm.learner.task import Batch, Batches, Evaluation, Task
from swarm.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class TrainedBatch:
    """What one batch did."""

    loss: float
    """Mean over its samples, before the step."""
    finite: bool
    """Whether the loss and the gradient were; the model was left alone otherwise."""


class Learner:
    """A model, its optimizer and schedule, and the batches it learns from.

    Args:
      seed: of the initial weights: the run's where all start alike, the peer's own where they are to start independently.
    """

    def __init__(
        self, run: RunSpec, task: Task, batches: Batches, *, seed: int, device: str = "cpu"
    ) -> None:
        self._run = run
        self._task = task
        self._seed = seed
        self._device = device
        self.batches = batches
        self.trained = 0
        """Batches, also those before a roll-back: the position in the data and in the schedule."""
        self.hosted = self._new()

    def _new(self) -> HostedModule:
        return HostedModule(self._task.build(self._seed), self._run.optimizer, device=self._device)

    @property
    def flat(self) -> Tensor:
        """All parameters as one vector (n,), the very memory."""
        return self.hosted.flat

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the module's parameters in its own order, with their names."""
        return list(self.hosted.module.named_parameters())

    def train_batch(self) -> TrainedBatch:
        """Learn from the next batch."""
        batch = self.batches(self.trained)
        rate = learning_rate(self._run.optimizer, step=self.trained, steps=self._run.training.steps)
        self.trained += 1
        hosted = self.hosted
        loss = self._task.loss(hosted.module, self._on_device(batch))
        gradients = torch.autograd.grad(loss, hosted.weights)
        gradient = hosted.layout.flatten(gradients, out=hosted.scratch)
        norm = float(torch.linalg.vector_norm(gradient))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            return TrainedBatch(value, finite=False)
        clip_norm = self._run.optimizer.clip_norm
        if 0.0 < clip_norm < norm:
            gradient.mul_(clip_norm / norm)
        hosted.apply(gradient, rate=rate)
        return TrainedBatch(value, finite=True)

    @torch.no_grad()
    def loss_on(self, vector: Tensor, batch: Batch) -> float:
        """Return what the model would lose on a batch with these parameters (n,)."""
        own = self.flat.clone()
        try:
            self.flat.copy_(vector)
            return float(self._task.loss(self.hosted.module, self._on_device(batch)))
        finally:
            self.flat.copy_(own)

    def evaluate(self) -> Evaluation:
        """Look at held-out samples."""
        return self._task.evaluate(self.hosted.module)

    @torch.no_grad()
    def evaluate_on(self, vector: Tensor) -> Evaluation:
        """Look at held-out samples with these parameters (n,)."""
        own = self.flat.clone()
        try:
            self.flat.copy_(vector)
            return self.evaluate()
        finally:
            self.flat.copy_(own)

    @torch.no_grad()
    def replace_parameters(self, vector: Tensor | None) -> None:
        """Go on from these parameters (n,), or from the initial ones, with a new optimizer state."""
        self.hosted = self._new()
        if vector is not None:
            self.flat.copy_(vector)

    def snapshot(self) -> tuple[int, Mapping[str, Tensor]]:
        """Return batches trained and copies of all that training depends on."""
        return self.trained, self.hosted.snapshot()

    def load(self, tensors: Mapping[str, Tensor], *, trained: int) -> None:
        """Go on from a snapshot."""
        self.hosted.load(tensors)
        self.trained = trained

    def _on_device(self, batch: Batch) -> Batch:
        if self._device == "cpu":
            return batch
        return Batch(batch.x.to(self._device), batch.y.to(self._device))
