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


_END: Final = 10_000


def vector_of(peer: int, version: int, elements: int) -> Tensor:
    """Return one peer's vector for one round: normal numbers of variance 1, whose ends can be made without the rest."""
    generator = torch.Generator().manual_seed(1000 * version + peer)
    first, last = (torch.randn(_END, generator=generator) for _ in range(2))
    return torch.cat([first, torch.randn(elements - 2 * _END, generator=generator), last])


def error_of(mean: Tensor, peers: int, version: int) -> float:
    """Return the largest deviation from the mean of all peers' vectors, in the first numbers and the last ones."""
    expected = torch.zeros(2 * _END)
    for peer in range(peers):
        expected += vector_of(peer, version, 2 * _END) / peers
    return float((torch.cat([mean[:_END], mean[-_END:]]) - expected).abs().max())


def sample_of(mean: Tensor) -> list[float]:
    """Return some numbers of all parts of a mean, to be compared with another peer's."""
    picked: list[float] = mean[:: mean.numel() // 64].tolist()
    return picked
