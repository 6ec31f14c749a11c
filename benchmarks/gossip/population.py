"""Many small models in one tensor, trained and tested many at a time. The arithmetic is that of `swarm.models.mlp` and
of SGD with momentum, which tests/benchmarks/test_gossip.py checks against torch's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.run import MlpSpec
from swarm.data.samples import Samples, Split
from swarm.gossip.table import Table
from swarm.models.classifier import SampleShape
from swarm.models.mlp import build


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How each peer trains."""

    batch: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4


class Population:
    """Models 0 to N - 1, each with its own samples and its own momentum."""

    def __init__(
        self,
        spec: MlpSpec,
        split: Split,
        parts: list[list[int]],
        seeds: list[int],
        training: Training,
        *,
        seed: int,
    ) -> None:
        """
        Args:
          parts: indices into the training samples, one list for each model.
          seeds: of the initial weights; equal seeds give equal weights.
        """
        channels, height, width = split.train.x.shape[1:]
        shape = SampleShape(channels, height, width, split.classes)
        modules = {start: build(spec, shape, start) for start in sorted(set(seeds))}
        first = next(iter(modules.values()))
        self.table = Table.of_shapes((name, tuple(p.shape)) for name, p in first.named_parameters())
        flat = {
            start: torch.cat([p.detach().reshape(-1) for p in module.parameters()])
            for start, module in modules.items()
        }
        self.weights = torch.stack([flat[start] for start in seeds])  # (N, n)
        self._momentum = torch.zeros_like(self.weights)
        self._data = [split.train.take(part) for part in parts]
        self._test = split.test
        self._training = training
        self._generator = torch.Generator().manual_seed(seed)
        self._queues: list[Tensor] = [torch.empty(0, dtype=torch.int64) for _ in parts]

    def __len__(self) -> int:
        return len(self.weights)

    def train(self, who: list[int]) -> None:
        """Train one batch of each of these models."""
        batches = [self._batch(index) for index in who]
        x = torch.stack([batch.x.flatten(1) for batch in batches])  # (G, B, inputs)
        y = torch.stack([batch.y for batch in batches])  # (G, B)
        weights = self.weights[who].requires_grad_()  # (G, n)
        logits = self._forward(weights, x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
        (gradient,) = torch.autograd.grad(loss, weights)
        t = self._training
        with torch.no_grad():
            gradient += t.weight_decay * weights
            momentum = self._momentum[who].mul_(t.momentum).add_(gradient)
            self._momentum[who] = momentum
            self.weights[who] -= t.lr * momentum

    def restore(self, index: int, weights: Tensor) -> None:
        """Return a model to earlier weights, without momentum."""
        self.weights[index] = weights
        self._momentum[index] = 0.0

    @torch.no_grad()
    def accuracy(self, who: list[int]) -> float:
        """Return the mean test accuracy of these models, in percent."""
        x = self._test.x.flatten(1).expand(len(who), -1, -1)
        right = self._forward(self.weights[who], x).argmax(2) == self._test.y
        return float(right.float().mean()) * 100

    def _batch(self, index: int) -> Samples:
        """Return the next samples of a peer, in an order drawn anew each time all have been seen."""
        data = self._data[index]
        size = self._training.batch
        while len(self._queues[index]) < size:
            order = torch.randperm(len(data), generator=self._generator)
            self._queues[index] = torch.cat([self._queues[index], order])
        chosen, self._queues[index] = self._queues[index][:size], self._queues[index][size:]
        return Samples(data.x[chosen], data.y[chosen])

    def _forward(self, weights: Tensor, x: Tensor) -> Tensor:
        """Map samples (G, B, inputs) to logits (G, B, classes), each row of weights (G, n) with its own."""
        slots = self.table.slots
        for weight, bias in zip(slots[::2], slots[1::2], strict=True):
            w = weights[:, weight.start : weight.end].view(-1, *weight.shape)  # (G, out, in)
            x = torch.baddbmm(weights[:, None, bias.start : bias.end], x, w.transpose(1, 2))
            if bias is not slots[-1]:
                x = F.relu(x)
        return x
