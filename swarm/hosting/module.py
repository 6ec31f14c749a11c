"""One stage as its peer holds it: weights, optimizer, and the gradient of the microbatches it has counted.

Rules of this file:
- It is used from one thread, the compute thread. It knows nothing of peers, queues or ids.
- Backward recomputes the forward, so nothing is kept between calls and any replica can answer any call.
- Counting is all or nothing: gradients are made apart, checked to be finite, and only then added. Nothing is ever
  subtracted; what must not count is discarded with the whole accumulator (`reset_gradient`).
- Steps count from 0. `version` is the number of optimizer steps applied: the step this stage works on now.

Letters: m microbatches in one call, B = m * sequences, T tokens, C = width, n parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.hosting.adamw import FlatAdamW
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.flat import FlatLayout
from swarm.hosting.shapes import microbatches_of
from swarm.models.registry import build_stage
from swarm.pipeline.schedule import learning_rate

PARAMETERS: Final = "parameters"
EXP_AVG: Final = "exp_avg"
EXP_AVG_SQ: Final = "exp_avg_sq"
GRADIENT_MAX: Final = 1e15
"""Largest element of one microbatch's gradient. The mean over a step is no larger, so its square, which AdamW keeps in
float32, is finite; and 65,536 of them can be summed. What peers send decides how large gradients are."""
STEP: Final = "step"
"""Names in a snapshot: `parameters/<parameter>`, `exp_avg/<parameter>`, `exp_avg_sq/<parameter>`, and `step`."""


@dataclass(frozen=True, slots=True)
class LossResult:
    """What the last stage answers."""

    losses: tuple[float, ...]
    """Mean over its tokens, one per microbatch, nats."""
    grad_x: Tensor | None
    """(B, T, C): of the sum of `losses`; None when this is also the first stage."""


class HostedStage:
    """A stage of the run's model, with everything that a training step changes."""

    def __init__(self, run: RunSpec, stage: int, device: str = "cpu") -> None:
        self.run = run
        self.stage = stage
        self.is_first = stage == 0
        pipeline = pipeline_of(run)
        self.is_last = stage == pipeline.stages - 1
        self.version = 0
        self.counted = 0
        """Microbatches in the accumulator."""
        self._device = torch.device(device)
        self._module = build_stage(pipeline.model, pipeline.stages, stage, run.seed).to(
            self._device
        )
        self.layout = FlatLayout.of(self._module)
        self._flat = self.layout.adopt(self._module)  # (n,), the parameters
        named = dict(self._module.named_parameters())
        self._parameters = [named[piece.name] for piece in self.layout.pieces]
        self._optimizer = FlatAdamW(
            pipeline.optimizer, self._flat, decayed_elements=self.layout.decayed_elements
        )
        self._gradient = torch.zeros_like(self._flat)  # (n,), sum over counted microbatches
        self._scratch = torch.empty_like(self._flat)  # (n,), gradient of the call in progress

    @property
    def parameter_count(self) -> int:
        return self.layout.elements

    # --- calls of trainers -------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T) tokens or (B, T, C) activations to (B, T, C). Raises NonFiniteError."""
        y: Tensor = self._module(x.to(self._device))
        _require_finite(y)
        return y.to("cpu")

    def backward(self, x: Tensor, grad_y: Tensor, *, count: bool) -> Tensor | None:
        """Recompute the forward of `x` and pass the gradient down; None at the first stage.

        Args:
          x: the input of the forward.
          grad_y: (B, T, C), gradient of the loss, for the output that `x` gave.
          count: add the parameters' gradient to this step's sum. Raises NonFiniteError, and then nothing was added.
        """
        x = self._as_leaf(x)
        y: Tensor = self._module(x)
        return self._differentiate(y, grad_y.to(self._device), x, count=count)

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
        losses = self._losses(x.to(self._device), targets)
        _require_finite(losses)
        return tuple(losses.tolist())

    def _losses(self, x: Tensor, targets: Tensor) -> Tensor:
        per_sequence = self._module.loss(x, targets.to(self._device))  # (B,)
        return per_sequence.view(self._microbatches(x), -1).mean(dim=1)  # (m,)

    def _microbatches(self, x: Tensor) -> int:
        microbatches = microbatches_of(self.run, x.size(0))
        if not microbatches:
            raise LocalProtocolError(
                f"{x.size(0)} sequences are not a whole number of microbatches"
            )
        return microbatches

    def _as_leaf(self, x: Tensor) -> Tensor:
        x = x.detach().to(self._device)
        return x if self.is_first else x.requires_grad_()

    def _differentiate(self, y: Tensor, grad_y: Tensor, x: Tensor, *, count: bool) -> Tensor | None:
        """Return the gradient for `x`, and count the parameters' gradient if asked to and all of it is finite."""
        microbatches = self._microbatches(x)
        # Without counting, the parameters' gradients are not needed: not asking for them saves a third of the work.
        wanted = [*(self._parameters if count else []), *([] if self.is_first else [x])]
        gradients = torch.autograd.grad(y, wanted, grad_y) if wanted else ()
        grad_x = None if self.is_first else gradients[-1]
        _require_finite(y.detach(), *([] if grad_x is None else [grad_x]))
        if count:
            self.layout.flatten(gradients[: len(self._parameters)], out=self._scratch)
            _require_summable(self._scratch)
            self._gradient += self._scratch
            self.counted += microbatches
        return None if grad_x is None else grad_x.to("cpu")

    # --- the step ----------------------------------------------------------------------------------------------

    def gradient(self) -> Tensor:
        """Return the sum over counted microbatches, (n,): the accumulator itself. Read it, before anything else counts."""
        return self._gradient

    def reset_gradient(self) -> None:
        """Discard all that was counted."""
        self._gradient.zero_()
        self.counted = 0

    def apply(self, mean_gradient: Tensor, *, clip_scale: float, step: int) -> None:
        """Do the optimizer step and forget what was counted.

        Args:
          mean_gradient: (n,), over the step's microbatches, the same bits at every replica.
          clip_scale: what clipping by the global norm across stages makes of it, at most 1.
          step: must be `version`, which is one more afterwards.
        """
        if step != self.version or mean_gradient.shape != self._flat.shape:
            raise LocalProtocolError(
                f"step {step} with {mean_gradient.numel()} elements cannot follow version {self.version}"
            )
        pipeline = pipeline_of(self.run)
        rate = learning_rate(pipeline.optimizer, step=step, steps=pipeline.steps)
        gradient = mean_gradient.to(self._device, self._flat.dtype) * clip_scale
        self._optimizer.apply(gradient, rate=rate, step=step)
        self.version += 1
        self.reset_gradient()

    # --- state -------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters under their names in the whole model."""
        return self.layout.views(self._flat.detach().clone().cpu())

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all that the next step depends on. The accumulator is not state: it is redone."""
        named: dict[str, Tensor] = {}
        for group, vector in self._vectors().items():
            views = self.layout.views(vector.detach().clone().cpu())
            named |= {f"{group}/{name}": view for name, view in views.items()}
        return named | {STEP: torch.tensor(self.version, dtype=torch.int64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a snapshot of the same stage. It is taken whole or not at all."""
        views: dict[str, Tensor] = {}
        for group, vector in self._vectors().items():
            views |= {f"{group}/{name}": view for name, view in self.layout.views(vector).items()}
        expected = {name: (view.shape, view.dtype) for name, view in views.items()}
        expected[STEP] = (torch.Size(), torch.int64)
        if expected != {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}:
            raise LocalProtocolError(
                "the snapshot is not of this stage: its names, shapes or dtypes differ"
            )
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(tensors[name])
        self.version = int(tensors[STEP])
        self.reset_gradient()

    def _vectors(self) -> dict[str, Tensor]:
        return {
            PARAMETERS: self._flat,
            EXP_AVG: self._optimizer.exp_avg,
            EXP_AVG_SQ: self._optimizer.exp_avg_sq,
        }


def _require_summable(gradient: Tensor) -> None:
    """Refuse one microbatch's gradient that could make the step's sum, or its squared norm, infinite."""
    if not torch.linalg.vector_norm(gradient, math.inf) <= GRADIENT_MAX:  # true of NaN as well
        raise NonFiniteError("the gradient is not finite, or far larger than any honest one")


def _require_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise NonFiniteError("the result is not finite")
