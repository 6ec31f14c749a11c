"""Images as a model takes them: float32, standardised, split into what is trained on and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swarm.data.images import Images
from swarm.data.partition import held_out_split


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled samples."""

    x: Tensor
    """(N, C, H, W) float32."""
    y: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Sequence[int]) -> Samples:
        chosen = torch.tensor(indices, dtype=torch.int64)
        return Samples(self.x[chosen], self.y[chosen])


@dataclass(frozen=True, slots=True)
class Split:
    """All samples of a run; the same on every peer."""

    train: Samples
    test: Samples
    classes: int


def standardised(images: Images, *, held_out: float, seed: int) -> Split:
    """Split images, and scale them to mean 0 and deviation 1 over the training part. Raises DataError."""
    train, test = held_out_split(len(images.y), held_out=held_out, seed=seed)
    # Of bytes, in double precision: every peer finds the same two numbers.
    seen = images.x[train]
    mean, deviation = float(seen.mean(dtype=np.float64)), float(seen.std(dtype=np.float64))
    x = torch.from_numpy(np.ascontiguousarray(images.x.transpose(0, 3, 1, 2))).float()
    x.sub_(mean).div_(deviation or 1.0)
    everything = Samples(x, torch.from_numpy(images.y))
    return Split(everything.take(train), everything.take(test), images.classes)
