"""What this mode asks of group averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from protocols.ids import PeerID


class RoundAbortedError(Exception):
    """A round ended without a mean; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """A round's outcome, the same at all of its members."""

    mean: Tensor
    """(n,) float32, weighted."""
    group: tuple[PeerID, ...]
    """Whose vectors are in it, in PeerID order."""


class Averager(Protocol):
    """Forms groups and averages vectors in them."""

    async def average(self, key: str, version: int, vector: Tensor, weight: float) -> Averaged:
        """Average a vector (n,) float32 with those of others that name the same key and version. Raises RoundAbortedError."""
        ...
