"""One run: many asynchronous trainers of one model in virtual time, a mixture of remote experts or a dense network.

A trainer copies the shared parameters, computes a batch, and changes the shared ones when its gradient has come through the
network, whatever others have done meanwhile. All trainers compute on one machine in turns, as in the paper's emulator, so
batches begin at a fixed pace, and gradients are the staler the longer they are on the way.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.dmoe.clock import Clock
from benchmarks.dmoe.network import EmulatedExperts, Seen, Weather
from moe.errors import TooFewExpertsError
from moe.layer import RemoteMixtureOfExperts
from moe.server import Expert, build_expert
from protocols.experts.uid import ExpertUID, Grid
from protocols.run import AdamWSpec
from swarm.data.samples import Samples, Split
from swarm.hosting.module import HostedModule

ADAM: Final = AdamWSpec(beta2=0.99, weight_decay=0.0)
NOISE: Final = 0.2
BALANCE: Final = 0.01
"""As `protocols.experts.spec.MoeSpec` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of models and of training."""

    layers: int = 2
    width: int = 32
    """Of a mixture's rows; its experts are width -> 4 width -> width."""
    k: int = 4
    trainers: int = 16
    batch: int = 8
    samples: int = 8_000
    """That each run trains on, all trainers together."""
    compute_s: float = 0.25
    """Virtual time of one batch on the one machine: with calls of a second each, of which a batch of two layers makes four, it is
    busy all the time, and with shorter ones fewer batches are under way at once."""
    looks: int = 8
    """At the test accuracy."""

    @property
    def dense_width(self) -> int:
        """As many parameters as the k experts that compute one row have."""
        return round(self.width * math.sqrt(self.k))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What the network is like."""

    latency_ms: float = 0.0
    failures: float = 0.0
    experts_only: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of a run."""

    right: list[bool]
    """Of each test image, in the end."""
    samples: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    """Percent, after so many samples."""
    staleness: float = 0.0
    """Mean over the gradients of what is remote: experts, or the dense network's blocks."""
    staleness_trunk: float = 0.0
    batches_lost: int = 0
    """Of a mixture: some row got no answer at all."""


def block(width: int) -> nn.Module:
    """Return an expert, or a block of the dense network."""
    return _Residual(
        nn.Linear(width, 4 * width), nn.LayerNorm(4 * width), nn.ReLU(), nn.Linear(4 * width, width)
    )  # fmt: skip


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y


class _Model(nn.Module):
    """What is around the blocks, with gates where they are mixtures. The blocks of a dense network are no part of it."""

    def __init__(
        self, pixels: int, width: int, classes: int, mixtures: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.first = nn.Linear(pixels, width)
        self.mixtures = nn.ModuleList(mixtures)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
        x = self.first(x)
        for layer in blocks or self.mixtures:
            x = layer(x)
        logits: Tensor = self.last(self.norm(x))
        return logits

    def balance(self) -> Tensor:
        losses: list[Any] = [layer.balance for layer in self.mixtures]
        return torch.stack(losses).sum()


@dataclass(slots=True)
class _Copy:
    """One trainer's copy of the parameters, or the shared ones. Gradients are computed on copies and change the shared ones."""

    trunk: HostedModule
    body: HostedModule | None
    """The dense network's blocks."""
    network: EmulatedExperts | None

    def logits(self, x: Tensor) -> Tensor:
        blocks = list(self.body.module) if self.body is not None else []  # type: ignore[call-overload]
        logits: Tensor = self.trunk.module(x, blocks)
        return logits

    def parts(self) -> list[HostedModule]:
        return [self.trunk, *([self.body] if self.body is not None else [])]


class Run:
    """One model and all its trainers.

    Args:
      experts: of each layer, a square grid; 0 for the dense network.
      rate: of learning, at first; it falls to 0 linearly with the samples.
    """

    def __init__(
        self,
        split: Split,
        sizes: Sizes,
        condition: Condition,
        *,
        experts: int,
        rate: float,
        seed: int,
    ) -> None:
        self._split = Split(_flat(split.train), _flat(split.test), split.classes)
        self._sizes, self._condition, self._peak = sizes, condition, rate
        self._seed = seed
        side = math.isqrt(experts)
        self._grids = [Grid(f"ffn{i}", (side, side)) for i in range(sizes.layers) if experts]
        torch.manual_seed(seed)  # noise has its own generators
        self._experts = {uid: self._expert(uid) for grid in self._grids for uid in grid.uids()}
        self._clock = Clock()
        self._batches = self._draw_batches()
        self._begun = 0
        self._trunk_seen, self._seen = Seen(), Seen()
        self._shared = self._copy(None, 0)
        self._outcome = Outcome([])

    def run(self) -> Outcome:
        """Train to the end."""
        self._look(0)
        trainers = []
        for index in range(self._sizes.trainers if self._condition.latency_ms else 1):
            weather = self._weather(index)
            mine = self._copy(weather, index)
            trainers.append(functools.partial(self._train, mine, weather))
        self._clock.run(trainers)
        outcome = self._outcome
        outcome.right = self._right().tolist()
        outcome.samples.append(self._begun)
        outcome.accuracy.append(100 * sum(outcome.right) / len(outcome.right))
        outcome.staleness, outcome.staleness_trunk = self._seen.mean, self._trunk_seen.mean
        return outcome

    # --- making ---

    def _expert(self, uid: ExpertUID) -> Expert:
        width = self._sizes.width
        return build_expert(uid, block(width), ADAM, row=(width,), epoch=1)

    def _copy(self, weather: Weather | None, index: int) -> _Copy:
        sizes = self._sizes
        body = network = None
        mixtures: list[nn.Module] = []
        if self._grids:
            network = EmulatedExperts(self._experts, self._rate, weather, self._seen)
            generator = torch.Generator().manual_seed(self._seed * 1000 + index)
            mixtures = [
                RemoteMixtureOfExperts(
                    network, grid, sizes.width, k=sizes.k, noise=NOISE, generator=generator
                )
                for grid in self._grids
            ]
        else:
            blocks = [block(sizes.dense_width) for _ in range(sizes.layers)]
            body = HostedModule(nn.Sequential(*blocks), ADAM)
        width = sizes.width if mixtures else sizes.dense_width
        pixels = self._split.train.x.shape[1]
        trunk = HostedModule(_Model(pixels, width, self._split.classes, mixtures), ADAM)
        return _Copy(trunk, body, network)

    def _weather(self, index: int) -> Weather:
        condition = self._condition
        return Weather(
            self._clock,
            random.Random(f"weather:{self._seed}:{index}"),
            condition.latency_ms / 1000,
            condition.failures,
            condition.experts_only,
        )

    def _draw_batches(self) -> Iterator[Tensor]:
        """Yield indices, each sample once before any twice: the same for every model of a seed."""
        generator = torch.Generator().manual_seed(self._seed)
        count, batch = len(self._split.train), self._sizes.batch
        for _ in range(-(-self._sizes.samples // (count - count % batch))):
            order = torch.randperm(count, generator=generator)
            yield from torch.split(order[: count - count % batch], batch)

    # --- training ---

    def _rate(self) -> float:
        return self._peak * max(0.0, 1.0 - self._begun / self._sizes.samples)

    def _train(self, mine: _Copy, weather: Weather) -> None:
        sizes = self._sizes
        while self._begun < sizes.samples:
            batch = next(self._batches)
            self._begun += len(batch)
            if self._begun * sizes.looks // sizes.samples > len(self._outcome.samples) - 1:
                self._look(self._begun)
            if self._condition.latency_ms:
                self._clock.compute(sizes.compute_s)
            x, y = self._split.train.x[batch], self._split.train.y[batch]
            if mine.network is None:
                self._train_dense(mine, weather, x, y)
            else:
                self._train_mixture(mine, x, y)
            weather.settle()

    def _train_mixture(self, mine: _Copy, x: Tensor, y: Tensor) -> None:
        (version,) = self._copy_shared(mine)
        try:
            loss = F.cross_entropy(mine.logits(x), y)
        except TooFewExpertsError:  # all that a row could choose failed: the batch is given up
            self._outcome.batches_lost += 1
            return
        model: Any = mine.trunk.module
        (gradient,) = _gradients(loss + BALANCE * model.balance(), mine)
        self._apply(self._shared.trunk, gradient, version, self._trunk_seen)

    def _train_dense(self, mine: _Copy, weather: Weather, x: Tensor, y: Tensor) -> None:
        """Compute the gradient at once, let it travel as long as a mixture's calls, and apply it stale."""
        of_trunk, of_body = self._copy_shared(mine)
        answered = torch.tensor([not weather.fails() for _ in range(len(y))])
        if bool(answered.any()):
            trunk, body = _gradients(F.cross_entropy(mine.logits(x[answered]), y[answered]), mine)
        for _ in range(2 * self._sizes.layers):
            weather.call()
        if bool(answered.any()):
            assert self._shared.body is not None
            self._apply(self._shared.trunk, trunk, of_trunk, self._trunk_seen)
            apply = functools.partial(self._apply, self._shared.body, body, of_body, self._seen)
            self._clock.later(weather.debt_s, apply)

    def _copy_shared(self, mine: _Copy) -> list[int]:
        """Read the shared parameters, and return how many steps each part has behind it."""
        for ours, shared in zip(mine.parts(), self._shared.parts(), strict=True):
            ours.flat.detach().copy_(shared.flat.detach())
        return [shared.version for shared in self._shared.parts()]

    def _apply(self, part: HostedModule, gradient: Tensor, version: int, seen: Seen) -> None:
        seen.add(part.version - version)
        part.apply(gradient, rate=self._rate())

    # --- looking ---

    def _look(self, samples: int) -> None:
        self._outcome.samples.append(samples)
        self._outcome.accuracy.append(100 * float(self._right().float().mean()))

    @torch.no_grad()
    def _right(self) -> Tensor:
        model = self._shared.trunk.module
        model.eval()
        return self._shared.logits(self._split.test.x).argmax(dim=1) == self._split.test.y


def _gradients(loss: Tensor, mine: _Copy) -> list[Tensor]:
    """Return the gradient of each part, (n,)."""
    parts = mine.parts()
    found = list(torch.autograd.grad(loss, [w for part in parts for w in part.weights]))
    vectors = []
    for part in parts:
        count = len(part.weights)
        vectors.append(torch.empty_like(part.flat))
        part.layout.flatten(found[:count], out=vectors[-1])
        del found[:count]
    return vectors


def _flat(samples: Samples) -> Samples:
    return Samples(samples.x.flatten(1), samples.y)
