"""Gates: which experts suit an input. They score coordinates of a grid, not experts, so a large grid costs little.

Letters: R rows, C width, S_i size of dimension i, N experts looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protocols.experts.spec import COSINE_WIDTH

_TEMPERATURE: Final = 0.3


class ProductKeyGate(nn.Module):
    """score(expert) = sum of its coordinates' scores, each a linear function of the input (arXiv:2002.04013).

    Args:
      noise: standard deviation of what is added to scores in training mode.
      generator: of the noise; None draws from torch's own.
    """

    def __init__(
        self,
        width: int,
        sizes: Sequence[int],
        *,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.noise = noise
        self.generator = generator
        self.keys = nn.Linear(width, sum(self.sizes), bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map rows (R, C) to a score for each coordinate: one (R, S_i) for each dimension."""
        scores = self.coordinate_scores(x)  # (R, sum of S_i)
        if self.training and self.noise:
            noise = torch.randn(scores.shape, dtype=scores.dtype, generator=self.generator)
            scores = scores + self.noise * noise.to(scores.device)
        return tuple(torch.split(scores, list(self.sizes), dim=1))

    def coordinate_scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.keys(x)
        return scores


class CosineGate(ProductKeyGate):
    """Scores are cosines in a small space over a learned temperature (X-MoE, arXiv:2204.09179).

    A dot product pulls inputs towards the experts' keys; directions alone do not.
    """

    def __init__(
        self,
        width: int,
        sizes: Sequence[int],
        *,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(width, sizes, noise=noise, generator=generator)
        self.project = nn.Linear(width, COSINE_WIDTH, bias=False)
        self.keys = nn.Linear(COSINE_WIDTH, sum(self.sizes), bias=False)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(_TEMPERATURE)]))

    def coordinate_scores(self, x: Tensor) -> Tensor:
        direction = F.normalize(self.project(x), dim=1)  # (R, 16)
        keys = F.normalize(self.keys.weight, dim=1)  # (sum of S_i, 16)
        return direction @ keys.T / self.log_temperature.exp()


def expert_scores(scores: Sequence[Tensor], places: Tensor) -> Tensor:
    """Return the score of each expert for each row, (R, N).

    Args:
      scores: (R, S_i) for each dimension i.
      places: (N, dimensions) int64.
    """
    return torch.stack([of.index_select(1, places[:, i]) for i, of in enumerate(scores)]).sum(0)


def balance_loss(scores: Tensor, chosen: Tensor) -> Tensor:
    """Return a loss, (), that is 1 when all experts are used evenly, and up to N when one gets everything.

    N * sum over experts of (share of choices) * (mean probability), as in the Switch Transformer (arXiv:2101.03961). Only the
    probabilities have a gradient.

    Args:
      scores: (R, N).
      chosen: (R, k) int64, columns of `scores`.
    """
    count = scores.shape[1]
    shares = torch.bincount(chosen.flatten(), minlength=count).to(scores.dtype) / chosen.numel()
    return count * (shares * scores.softmax(dim=1).mean(dim=0)).sum()
