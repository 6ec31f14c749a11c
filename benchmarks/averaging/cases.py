"""What is averaged, and the vectors of each peer: both sides make the same from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Case:
    """So many peers, each with a vector of so many bytes of float32."""

    peers: int
    megabytes: int

    @property
    def elements(self) -> int:
        return self.megabytes * 250_000

    @property
    def name(self) -> str:
        return f"{self.peers}x{self.megabytes}"


CASES: Final = (Case(2, 100), Case(4, 40), Case(8, 40))
RATIO: Final = 1.5
RATIO_8BIT: Final = 2.0
"""At least, of hivemind's seconds over ours."""


def vector_of(peer: int, version: int, elements: int) -> Tensor:
    """Return one peer's vector for one round."""
    generator = torch.Generator().manual_seed(1000 * version + peer)
    return torch.randn(elements, generator=generator)


def error_of(mean: Tensor, peers: int, version: int) -> float:
    """Return the largest deviation from the mean of all peers' vectors, in the first 100,000 numbers."""
    some = 100_000
    expected = torch.zeros(some)
    for peer in range(peers):
        expected += vector_of(peer, version, mean.numel())[:some] / peers
    return float((mean[:some] - expected).abs().max())
