"""One stage's parameters as one contiguous vector, with a name for every piece of it.

Averaging parts, checkpoints and optimizer steps are then slices and a handful of operations, without copies. The order
is fixed by names alone: decayed parameters first, so that weight decay is one slice, and sorted within each group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swarm.schedule import is_decayed


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one parameter lies in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int


class FlatLayout:
    """The order of a module's parameters in a flat vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        pieces = []
        start = 0
        for name in sorted(shapes, key=lambda name: (not is_decayed(name, shapes[name]), name)):
            end = start + math.prod(shapes[name])
            pieces.append(Piece(name, shapes[name], start, end))
            start = end
        self.pieces: tuple[Piece, ...] = tuple(pieces)
        self.elements = start
        self.decayed_elements = max(
            (piece.end for piece in pieces if is_decayed(piece.name, piece.shape)), default=0
        )

    @classmethod
    def of(cls, module: nn.Module) -> FlatLayout:
        return cls({name: tuple(parameter.shape) for name, parameter in module.named_parameters()})

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return every piece of the vector (elements,) under its name and in its shape, sharing memory."""
        return {
            piece.name: vector[piece.start : piece.end].view(piece.shape) for piece in self.pieces
        }

    def flatten(self, tensors: Iterable[Tensor], out: Tensor) -> Tensor:
        """Copy tensors, given in the order of `pieces`, into the vector `out`."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)

    def adopt(self, module: nn.Module) -> Tensor:
        """Move the module's parameters into one vector and return it; the module's parameters become views of it."""
        parameters = dict(module.named_parameters())
        first = next(iter(parameters.values()), torch.empty(0))  # a module may have none
        vector = torch.empty(self.elements, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for name, view in self.views(vector).items():
                view.copy_(parameters[name])
                parameters[name].data = view
        return vector
