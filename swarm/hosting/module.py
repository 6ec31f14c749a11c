"""Any torch module as its host holds it: weights in one flat vector, an optimizer, and a gradient that is summed up.

Rules of this file:
- It is used from one thread, the compute thread. It knows nothing of peers, queues or ids.
- Counting is all or nothing: gradients are made apart, checked to be finite, and only then added. Nothing is ever
  subtracted; what must not count is discarded with the whole accumulator (`reset_gradient`).
- `version` is the number of optimizer steps applied; a snapshot has all that the next step depends on.

A stage of a pipeline is one use of it, an expert another, a whole model a third.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from protocols.errors import LocalProtocolError
from protocols.run import OptimizerSpec
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.flat import FlatLayout
from swarm.hosting.optimizers import MakeOptimizer, optimizer_of

PARAMETERS: Final = "parameters"
BUFFERS: Final = "buffers"
STEP: Final = "step"
"""Names in a snapshot: `parameters/<name>`, `<vector of the optimizer>/<name>`, `buffers/<name>`, and `step`."""
GRADIENT_MAX: Final = 1e15
"""Largest element of one gradient that is counted. The mean over a step is no larger, so its square, which AdamW keeps in
float32, is finite; and 65,536 of them can be summed. What peers send decides how large gradients are."""


_RANGE_MIN: Final = 1e30
_RATE_MAX: Final = 1e15
_PARAMETER_MAX: Final = 1e20
"""With gradients up to GRADIENT_MAX no step from here leaves float32; beyond, a copy is kept until the step is seen to be good."""


class HostedModule:
    """A module with everything that a training step changes. Its parameters must be of one floating dtype.

    Args:
      module: taken over: its parameters become views of one vector.
      optimizer: a spec of the run file, or a function that makes any other one for a flat vector.
      device: where it computes.
    """

    def __init__(
        self, module: nn.Module, optimizer: OptimizerSpec | MakeOptimizer, *, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self.version = 0
        self.counted = 0
        """What was summed up in the gradient: microbatches, requests, or whatever the host counts."""
        self.layout = FlatLayout.of(self.module)
        self.flat = self.layout.adopt(self.module)  # (n,), the parameters
        named = dict(self.module.named_parameters())
        self.weights = [named[piece.name] for piece in self.layout.pieces]
        make = optimizer if callable(optimizer) else optimizer_of(optimizer)
        self._optimizer = make(self.flat, self.layout.decayed_elements)
        self._gradient = torch.zeros_like(self.flat)  # (n,), sum of what was counted
        self.scratch = torch.empty_like(self.flat)  # (n,), for the gradient of the call in progress

    # --- the gradient ---

    def gradient(self) -> Tensor:
        """Return the sum of what was counted, (n,): the accumulator itself. Read it before anything else counts."""
        return self._gradient

    def reset_gradient(self) -> None:
        """Discard all that was counted."""
        self._gradient.zero_()
        self.counted = 0

    def differentiate(
        self, y: Tensor, grad_y: Tensor, inputs: Sequence[Tensor], *, count: int
    ) -> tuple[Tensor, ...]:
        """Return the gradients for `inputs`, and add the parameters' gradient to the sum if all of it is finite.

        Args:
          y: an output of the module, with its graph.
          grad_y: the gradient for it, of the same shape.
          count: by how much `counted` grows; 0 adds nothing, and saves a third of the work.
        Raises:
          NonFiniteError: nothing was added then.
        """
        wanted = [*(self.weights if count else []), *inputs]
        gradients = torch.autograd.grad(y, wanted, grad_y) if wanted else ()
        passed_on = gradients[len(gradients) - len(inputs) :]
        require_finite(y.detach(), *passed_on)
        if count:
            self.layout.flatten(gradients[: len(self.weights)], out=self.scratch)
            _require_summable(self.scratch)
            self._gradient += self.scratch
            self.counted += count
        return passed_on

    def apply(self, gradient: Tensor, *, rate: float) -> None:
        """Do one optimizer step with a gradient (n,), already averaged and clipped, and forget what was counted.

        Raises NonFiniteError when the outcome is not finite; then everything is as it was before.
        """
        if gradient.shape != self.flat.shape:
            raise LocalProtocolError(
                f"a gradient of {gradient.numel()} elements for {self.flat.numel()} parameters"
            )
        gradient = gradient.to(self.device, self.flat.dtype)
        if self._may_overflow(rate):
            self._apply_or_undo(gradient, rate)
        else:
            self._optimizer.apply(gradient, rate=rate, step=self.version)
        self.version += 1
        self.reset_gradient()

    def blend(self, vector: Tensor, *, share: float) -> Tensor:
        """Replace the parameters by (1 - share) of their own and `share` of a vector (n,); return a copy of the outcome, (n,).

        Counts as a step. Raises NonFiniteError when the vector is not finite.
        """
        require_finite(vector)
        with torch.no_grad():
            self.flat.lerp_(vector.to(self.device, self.flat.dtype), share)
        self.version += 1
        return self.flat.detach().clone()

    def move(self, by: Tensor) -> None:
        """Add a vector (n,) to the parameters. Counts as a step. Raises NonFiniteError when it is not finite."""
        require_finite(by)
        with torch.no_grad():
            self.flat += by.to(self.device, self.flat.dtype)
        self.version += 1

    def _may_overflow(self, rate: float) -> bool:
        """Tell whether a step could end in infinities. Gradients are bounded, so only the rate or the parameters can do that."""
        tiny_range = torch.finfo(self.flat.dtype).max < _RANGE_MIN
        return tiny_range or not (
            rate <= _RATE_MAX and torch.linalg.vector_norm(self.flat, math.inf) <= _PARAMETER_MAX
        )

    def _apply_or_undo(self, gradient: Tensor, rate: float) -> None:
        before = {name: vector.clone() for name, vector in self._vectors().items()}
        try:
            self._optimizer.apply(gradient, rate=rate, step=self.version)
            require_finite(*self._vectors().values())
        except (NonFiniteError, RuntimeError, OverflowError, ValueError) as error:
            for name, vector in self._vectors().items():
                vector.copy_(before[name])
            raise NonFiniteError(f"an optimizer step at a rate of {rate:.3g} overflows") from error

    # --- state ---

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters under their names, on the CPU."""
        return self.layout.views(self.flat.detach().clone().cpu())

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all that the next step depends on, on the CPU. The accumulator is not state: it is redone."""
        named: dict[str, Tensor] = {}
        for group, vector in self._vectors().items():
            views = self.layout.views(vector.detach().clone().cpu())
            named |= {f"{group}/{name}": view for name, view in views.items()}
        for name, buffer in self.module.named_buffers():
            named[f"{BUFFERS}/{name}"] = buffer.detach().clone().cpu()
        return named | {STEP: torch.tensor(self.version, dtype=torch.int64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a snapshot of the same module. It is taken whole or not at all."""
        views: dict[str, Tensor] = {}
        for group, vector in self._vectors().items():
            views |= {f"{group}/{name}": view for name, view in self.layout.views(vector).items()}
        views |= {f"{BUFFERS}/{name}": b for name, b in self.module.named_buffers()}
        expected = {name: (view.shape, view.dtype) for name, view in views.items()}
        expected[STEP] = (torch.Size(), torch.int64)
        if expected != {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}:
            raise LocalProtocolError(
                "the snapshot is not of this module: its names, shapes or dtypes differ"
            )
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(tensors[name])
        self.version = int(tensors[STEP])
        self.reset_gradient()

    def _vectors(self) -> dict[str, Tensor]:
        return {PARAMETERS: self.flat, **self._optimizer.vectors()}


def _require_summable(gradient: Tensor) -> None:
    """Refuse a gradient that could make the step's sum, or its squared norm, infinite."""
    if not torch.linalg.vector_norm(gradient, math.inf) <= GRADIENT_MAX:  # true of NaN as well
        raise NonFiniteError("the gradient is not finite, or far larger than any honest one")


def require_finite(*tensors: Tensor) -> None:
    """Raise NonFiniteError when one of them is not finite."""
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise NonFiniteError("the result is not finite")
