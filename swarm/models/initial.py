"""Initial weights that depend on the run's seed and the parameter's name alone.

Peers build their stages apart and must start with the same bits. So nothing here depends on the order of
construction, on how the model is cut or on the global generator; and the numbers are scaled integers, because normal
ones go through logarithms and cosines that differ in the last bit between processors.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import torch
from torch import Tensor

_STEPS: Final = 1 << 23
"""Distinct values on each side of zero: what a float32 can hold exactly."""


@torch.no_grad()
def fill_uniform(parameter: Tensor, *, name: str, deviation: float, seed: int) -> None:
    """Fill in place, uniformly around zero with the given standard deviation.

    Args:
      name: the parameter's name in the whole model, such as `layers.2.mlp.up.weight`.
    """
    digest = hashlib.sha256(f"murmura initial weights:{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    integers = torch.randint(-_STEPS, _STEPS + 1, parameter.shape, generator=generator)
    # Rounded to float32 in every case, so that runs in both precisions start from the same numbers.
    scale = math.sqrt(3.0) * deviation / _STEPS
    parameter.copy_((integers.to(torch.float64) * scale).to(torch.float32))
