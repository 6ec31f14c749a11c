"""One stage as its peer holds it: a hosted module that is asked for forwards, backwards and losses of microbatches.

Rules of this file:
- Backward recomputes the forward, so nothing is kept between calls and any replica can answer any call.
- Steps count from 0. `version` is the number of optimizer steps applied: the step this stage works on now.
- What is counted is microbatches. How, and what a snapshot holds, is the hosted module's (`swarm.hosting.module`).

Letters: m microbatches in one call, B = m * sequences, T tokens, C = width, n parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.ledger.view import LOSS_MAX
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.module import HostedModule, require_finite
from swarm.models.contract import StageModule
from swarm.models.registry import build_stage
from swarm.pipeline.shapes import microbatches_of
from swarm.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class LossResult:
    """What the last stage answers."""

    losses: tuple[float, ...]
    """Mean over its tokens, one per microbatch, nats."""
    grad_x: Tensor | None
    """(B, T, C): of the sum of `losses`; None when this is also the first stage."""


class HostedStage(HostedModule):
    """A stage of the run's model, with everything that a training step changes."""

    module: StageModule

    def __init__(self, run: RunSpec, stage: int, device: str = "cpu") -> None:
        self.run = run
        self.stage = stage
        self.is_first = stage == 0
        pipeline = pipeline_of(run)
        self.is_last = stage == pipeline.stages - 1
        module = build_stage(pipeline.model, pipeline.stages, stage, run.seed)
        super().__init__(module, pipeline.optimizer, device=device)

    @property
    def parameter_count(self) -> int:
        return self.layout.elements

    # --- calls of trainers -------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T) tokens or (B, T, C) activations to (B, T, C). Raises NonFiniteError."""
        y: Tensor = self.module(x.to(self.device))
        require_finite(y)
        return y.to("cpu")

    def backward(self, x: Tensor, grad_y: Tensor, *, count: bool) -> Tensor | None:
        """Recompute the forward of `x` and pass the gradient down; None at the first stage.

        Args:
          x: the input of the forward.
          grad_y: (B, T, C), gradient of the loss, for the output that `x` gave.
          count: add the parameters' gradient to this step's sum. Raises NonFiniteError, and then nothing was added.
        """
        x = self._as_leaf(x)
        y: Tensor = self.module(x)
        return self._differentiate(y, grad_y.to(self.device), x, count=count)

    def loss(self, x: Tensor, targets: Tensor, *, count: bool) -> LossResult:
        """Forward, loss and backward of the last stage in one call. Raises NonFiniteError.

        What is differentiated is the sum over microbatches of each one's mean loss, so two microbatches in one call
        give the same as two calls.
        """
        x = self._as_leaf(x)
        losses = self._losses(x, targets)  # (m,)
        grad_x = self._differentiate(losses, torch.ones_like(losses), x, count=count)
        return LossResult(tuple(losses.tolist()), grad_x)

    @torch.no_grad()
    def evaluate(self, x: Tensor, targets: Tensor) -> tuple[float, ...]:
        """Return the mean loss of each microbatch in nats per token, counting nothing. Raises NonFiniteError."""
        losses = self._losses(x.to(self.device), targets)
        require_finite(losses)
        return tuple(losses.tolist())

    def _losses(self, x: Tensor, targets: Tensor) -> Tensor:
        per_sequence = self.module.loss(x, targets.to(self.device))  # (B,)
        losses = per_sequence.view(self._microbatches(x), -1).mean(dim=1)  # (m,)
        largest = float(losses.detach().abs().max())
        if (
            not largest <= LOSS_MAX
        ):  # true of NaN as well. No record can say more, and nothing trains there
            raise NonFiniteError(f"the loss is {largest:.3g}")
        return losses

    def _microbatches(self, x: Tensor) -> int:
        microbatches = microbatches_of(self.run, x.size(0))
        if not microbatches:
            raise LocalProtocolError(
                f"{x.size(0)} sequences are not a whole number of microbatches"
            )
        return microbatches

    def _as_leaf(self, x: Tensor) -> Tensor:
        x = x.detach().to(self.device)
        return x if self.is_first else x.requires_grad_()

    def _differentiate(self, y: Tensor, grad_y: Tensor, x: Tensor, *, count: bool) -> Tensor | None:
        """Return the gradient for `x`, and count the parameters' gradient if asked to and all of it is finite."""
        microbatches = self._microbatches(x)
        inputs = [] if self.is_first else [x]
        passed_on = self.differentiate(y, grad_y, inputs, count=microbatches if count else 0)
        return passed_on[0].to("cpu") if passed_on else None

    # --- the step ----------------------------------------------------------------------------------------------

    def apply_step(self, mean_gradient: Tensor, *, clip_scale: float, step: int) -> None:
        """Do the optimizer step and forget what was counted.

        Args:
          mean_gradient: (n,), over the step's microbatches, the same bits at every replica.
          clip_scale: what clipping by the global norm across stages makes of it, at most 1.
          step: must be `version`, which is one more afterwards.
        """
        if step != self.version:
            raise LocalProtocolError(f"step {step} cannot follow version {self.version}")
        pipeline = pipeline_of(self.run)
        rate = learning_rate(pipeline.optimizer, step=step, steps=pipeline.steps)
        self.apply(mean_gradient * clip_scale, rate=rate)
