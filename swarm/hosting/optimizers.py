"""Optimizers on one flat parameter vector: AdamW and SGD of our own, and any of torch.optim.

Ours are elementwise on whole vectors, so that replicas stay equal bit by bit with any number of threads, and their state is
vectors that can be snapshotted as they are. torch's get the flat vector as their one parameter, which makes them as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, assert_never

import torch
from torch import Tensor

from protocols.run import AdamWSpec, OptimizerSpec, SgdSpec


class FlatOptimizer(Protocol):
    """Updates one vector in place."""

    def apply(self, gradient: Tensor, *, rate: float, step: int) -> None:
        """Do one update.

        Args:
          gradient: (n,), of the parameters' dtype and device, already averaged and clipped.
          rate: the learning rate of this step.
          step: counted from 0.
        """
        ...

    def vectors(self) -> Mapping[str, Tensor]:
        """Return its state: (n,) vectors by name, the very memory, so that writing to them loads a state."""
        ...


MakeOptimizer: TypeAlias = Callable[[Tensor, int], FlatOptimizer]
"""(parameters (n,), how many of them, from the front, are decayed) -> optimizer."""


def optimizer_of(spec: OptimizerSpec) -> MakeOptimizer:
    """Return what makes the run file's optimizer for a vector."""

    def make(parameters: Tensor, decayed_elements: int) -> FlatOptimizer:
        match spec:
            case AdamWSpec():
                return FlatAdamW(spec, parameters, decayed_elements=decayed_elements)
            case SgdSpec():
                return FlatSgd(spec, parameters)
            case _:
                assert_never(spec)

    return make


class FlatAdamW:
    """AdamW (arXiv:1711.05101): what torch.optim.AdamW computes, up to rounding."""

    def __init__(self, spec: AdamWSpec, parameters: Tensor, *, decayed_elements: int) -> None:
        self._spec = spec
        self._parameters = parameters  # (n,), updated in place
        self._decayed_elements = decayed_elements
        self.exp_avg = torch.zeros_like(parameters)  # (n,)
        self.exp_avg_sq = torch.zeros_like(parameters)  # (n,)

    def vectors(self) -> Mapping[str, Tensor]:
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    @torch.no_grad()
    def apply(self, gradient: Tensor, *, rate: float, step: int) -> None:
        spec = self._spec
        self.exp_avg.lerp_(gradient, 1.0 - spec.beta1)
        self.exp_avg_sq.mul_(spec.beta2).addcmul_(gradient, gradient, value=1.0 - spec.beta2)
        self._parameters[: self._decayed_elements].mul_(1.0 - rate * spec.weight_decay)
        root_correction = math.sqrt(1.0 - spec.beta2 ** (step + 1))
        denominator = self.exp_avg_sq.sqrt().div_(root_correction).add_(spec.eps)
        self._parameters.addcdiv_(
            self.exp_avg, denominator, value=-rate / (1.0 - spec.beta1 ** (step + 1))
        )


class FlatSgd:
    """Gradient descent with momentum (heavy ball): what torch.optim.SGD computes."""

    def __init__(self, spec: SgdSpec, parameters: Tensor) -> None:
        self._spec = spec
        self._parameters = parameters  # (n,), updated in place
        self.momentum = torch.zeros_like(parameters)  # (n,)

    def vectors(self) -> Mapping[str, Tensor]:
        return {"momentum": self.momentum}

    @torch.no_grad()
    def apply(self, gradient: Tensor, *, rate: float, step: int) -> None:
        gradient = gradient.add(self._parameters, alpha=self._spec.weight_decay)
        # The first gradient is taken whole, as torch does: momentum starts there and not at zero.
        self.momentum.mul_(self._spec.momentum if step else 0.0).add_(gradient)
        self._parameters.add_(self.momentum, alpha=-rate)


class TorchOptimizer:
    """Any optimizer of torch.optim, e.g. `lambda vector, _: TorchOptimizer(vector, torch.optim.RMSprop, alpha=0.9)`."""

    def __init__(
        self, parameters: Tensor, kind: Callable[..., torch.optim.Optimizer], **options: Any
    ) -> None:
        self._parameter = torch.nn.Parameter(parameters)  # shares the memory
        self._parameter.data = parameters
        self._optimizer = kind([self._parameter], lr=0.0, **options)
        self._parameter.grad = torch.zeros_like(parameters)
        self._optimizer.step()  # makes its state, with a rate of 0
        for vector in self.vectors().values():
            vector.zero_()
        for state in self._optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].zero_()

    def vectors(self) -> Mapping[str, Tensor]:
        state = self._optimizer.state[self._parameter]
        return {
            name: value
            for name, value in sorted(state.items())
            if isinstance(value, Tensor) and value.shape == self._parameter.shape
        }

    @torch.no_grad()
    def apply(self, gradient: Tensor, *, rate: float, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        counter = self._optimizer.state[self._parameter].get("step")
        if isinstance(counter, Tensor):
            counter.fill_(step)  # after a load, too
        self._parameter.grad = gradient
        self._optimizer.step()
