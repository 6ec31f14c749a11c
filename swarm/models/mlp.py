"""Fully connected layers with ReLU between them: (B, C, H, W) -> (B, C * H * W) -> width -> ... -> classes."""

from __future__ import annotations

import itertools
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from protocols.run import MlpSpec
from swarm.models.classifier import SampleShape, build_quietly, fill_for_relu


class Mlp(nn.Module):
    """`layers` weight matrices, each with a bias."""

    def __init__(self, spec: MlpSpec, shape: SampleShape) -> None:
        super().__init__()
        inputs = shape.channels * shape.height * shape.width
        sizes = [inputs, *[spec.width] * (spec.layers - 1), shape.classes]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, C, H, W) to logits (B, classes)."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return cast("Tensor", self.layers[-1](x))


def build(spec: MlpSpec, shape: SampleShape, seed: int) -> Mlp:
    """Build one with initial weights that depend on the seed alone."""
    module = cast("Mlp", build_quietly(lambda: Mlp(spec, shape), spec.dtype))
    fill_for_relu(module, seed=seed, output=f"layers.{spec.layers - 1}.weight")
    return module
