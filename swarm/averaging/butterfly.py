"""Butterfly all-reduce, the arithmetic: every member reduces one part of a flat vector and gives it to the others.

The result must be the same bits at every member and for any number of threads. So sums have one order (that of the
PeerIDs), tensor operations are elementwise, and the only real reduction is exact (`squared_norm`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from swarm.tensors.wire import bytes_of

_ROW: Final = 1024
"""Elements summed by one thread in one go; fixed, because another grouping rounds differently."""


def part_slices(elements: int, members: int) -> tuple[slice, ...]:
    """Cut a vector in one part per member, in PeerID order: sizes differ by at most one, and may be zero."""
    size, larger = divmod(elements, members)
    ends = [size * (index + 1) + min(index + 1, larger) for index in range(members)]
    return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


@torch.no_grad()
def reduce_part(contributions: Sequence[Tensor]) -> Tensor:
    """Add the members' contributions to one part.

    Args:
      contributions: (n,) float32 or float64 each, all of one dtype, in PeerID order. They are not changed.
    Returns:
      (n,) of the same dtype, in memory of its own.
    """
    first, *others = contributions
    if any(other.shape != first.shape or other.dtype != first.dtype for other in others):
        raise LocalProtocolError("contributions to one part differ in shape or dtype")
    total = first.clone()
    for other in others:
        total += other
    return total


@torch.no_grad()
def squared_norm(part: Tensor) -> float:
    """Return the sum of squares of a flat vector, in float64, the same for any number of threads."""
    rows = math.ceil(part.numel() / _ROW)
    padded = torch.zeros(rows * _ROW, dtype=torch.float64)
    padded[: part.numel()] = part
    return math.fsum(padded.square_().view(rows, _ROW).sum(dim=1).tolist())


def part_hash(part: Tensor) -> bytes:
    """Return SHA-256 of the part's bytes: equal hashes, equal bits."""
    return hashlib.sha256(bytes_of(part)).digest()


def clip_scale(squared_norms: Sequence[float], *, clip_norm: float) -> float:
    """Return what to multiply a gradient by so that its norm is at most `clip_norm`; at most 1.0.

    Args:
      squared_norms: of the mean gradient, one per stage, or one per part of every stage; the order does not matter.
      clip_norm: 0 turns clipping off.
    """
    norm = math.sqrt(math.fsum(squared_norms))
    return clip_norm / norm if 0.0 < clip_norm < norm else 1.0
