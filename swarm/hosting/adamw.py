"""AdamW (arXiv:1711.05101) on flat vectors.

torch.optim.AdamW does the same arithmetic per tensor. This one is elementwise on whole vectors, so that replicas stay
equal bit by bit with any number of threads, and its state is two vectors that can be snapshotted as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protocols.run import AdamWSpec


class FlatAdamW:
    """The moments of one flat parameter vector, and the update."""

    def __init__(self, spec: AdamWSpec, parameters: Tensor, *, decayed_elements: int) -> None:
        self._spec = spec
        self._parameters = parameters  # (n,), updated in place
        self._decayed_elements = decayed_elements
        self.exp_avg = torch.zeros_like(parameters)  # (n,)
        self.exp_avg_sq = torch.zeros_like(parameters)  # (n,)

    @torch.no_grad()
    def apply(self, gradient: Tensor, *, rate: float, step: int) -> None:
        """Do one update.

        Args:
          gradient: (n,), of the parameters' dtype, already averaged and clipped.
          rate: the learning rate of this step.
          step: counted from 0.
        """
        spec = self._spec
        self.exp_avg.lerp_(gradient, 1.0 - spec.beta1)
        self.exp_avg_sq.mul_(spec.beta2).addcmul_(gradient, gradient, value=1.0 - spec.beta2)
        self._parameters[: self._decayed_elements].mul_(1.0 - rate * spec.weight_decay)
        root_correction = math.sqrt(1.0 - spec.beta2 ** (step + 1))
        denominator = self.exp_avg_sq.sqrt().div_(root_correction).add_(spec.eps)
        self._parameters.addcdiv_(
            self.exp_avg, denominator, value=-rate / (1.0 - spec.beta1 ** (step + 1))
        )
