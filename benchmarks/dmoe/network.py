"""Experts behind a network that is slow and loses calls in virtual time: what `moe.layer` asks instead of real hosts."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.dmoe.clock import Clock
from moe.network import Answered
from moe.server import Expert
from protocols.experts.messages import Output
from protocols.experts.uid import ExpertUID, Grid
from protocols.ids import PeerID

NOBODY = PeerID(bytes(2))


@dataclass(slots=True)
class Seen:
    """How stale gradients were: steps between the parameters they are of and those they changed."""

    gradients: int = 0
    staleness: int = 0

    def add(self, steps: int) -> None:
        self.gradients += 1
        self.staleness += steps

    @property
    def mean(self) -> float:
        return self.staleness / self.gradients if self.gradients else 0.0


@dataclass(slots=True)
class Weather:
    """What the network does to one trainer's calls.

    Args:
      latency_s: mean of the exponential distribution that each call's latency is drawn from.
      failures: share of choices that nobody answers.
      experts_only: calls are answered at once, and only what they do to experts comes as late as the calls would have.
    """

    clock: Clock
    random: random.Random
    latency_s: float = 0.0
    failures: float = 0.0
    experts_only: bool = False
    debt_s: float = 0.0
    """With `experts_only`: what the calls of this batch would have taken so far."""

    def call(self) -> None:
        """Wait for the network once, or owe it."""
        if not self.latency_s:
            return
        latency_s = self.random.expovariate(1.0 / self.latency_s)
        if self.experts_only:
            self.debt_s += latency_s
        else:
            self.clock.sleep(latency_s)

    def fails(self) -> bool:
        return self.failures > 0.0 and self.random.random() < self.failures

    def settle(self) -> None:
        """End a batch: wait for what is owed, so that trainers are as slow as if they had waited."""
        owed_s, self.debt_s = self.debt_s, 0.0
        self.clock.sleep(owed_s)


@dataclass(slots=True)
class EmulatedExperts:
    """One trainer's view of all experts: an `ExpertNetwork`. Experts step right after each backward batch, as a host's do.

    Args:
      weather: None for looking at the model as it is: no latency, no failures, and every expert found.
      rate: the learning rate of now.
    """

    experts: Mapping[ExpertUID, Expert]
    rate: Callable[[], float]
    weather: Weather | None = None
    seen: Seen = field(default_factory=Seen)
    wrong_answers: int = 0

    def find(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int
    ) -> Sequence[ExpertUID]:
        """Return the best `beam` experts; in a full grid that is what a beam search finds."""
        uids = [uid for uid in self.experts if uid.layer == grid.layer]
        if self.weather is None:
            return uids

        def score(uid: ExpertUID) -> float:
            return sum(of[place] for of, place in zip(scores, uid.place, strict=True))

        return sorted(uids, key=score, reverse=True)[:beam]

    def forward(
        self, requests: Sequence[tuple[ExpertUID, Tensor]], *, out_row: tuple[int, ...]
    ) -> Sequence[Answered | None]:
        """Ask all at once: one latency."""
        weather = self.weather
        if weather is not None:
            weather.call()
        return [
            None if weather is not None and weather.fails() else self._answer(uid, x)
            for uid, x in requests
        ]

    def backward(
        self, requests: Sequence[tuple[Answered, Tensor, Tensor]]
    ) -> Sequence[Tensor | None]:
        """Let all step: one latency."""
        assert self.weather is not None, "who only looks sends nothing back"
        self.weather.call()
        return [self._step(answered, x, grad_y) for answered, x, grad_y in requests]

    def wrong(self, answered: Answered, reason: str) -> None:
        self.wrong_answers += 1

    @torch.no_grad()
    def _answer(self, uid: ExpertUID, x: Tensor) -> Answered:
        hosted = self.experts[uid].hosted
        return Answered(uid, NOBODY, hosted.module(x), Output(1, hosted.version))

    def _step(self, answered: Answered, x: Tensor, grad_y: Tensor) -> Tensor:
        assert self.weather is not None
        hosted = self.experts[answered.uid].hosted
        with torch.enable_grad():  # autograd turns it off in a backward pass
            leaf = x.detach().requires_grad_()
            (grad_x,) = hosted.differentiate(hosted.module(leaf), grad_y, [leaf], count=1)
        gradient = (
            hosted.gradient().clone()
        )  # the accumulator is others' as well until this one is applied
        hosted.reset_gradient()
        apply = functools.partial(self._apply, answered, gradient)
        self.weather.clock.later(self.weather.debt_s, apply)
        return grad_x

    def _apply(self, answered: Answered, gradient: Tensor) -> None:
        hosted = self.experts[answered.uid].hosted
        self.seen.add(hosted.version - answered.output.version)
        hosted.apply(gradient, rate=self.rate())
