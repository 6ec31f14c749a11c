"""Convolutions of 3 x 3 with ReLU and pooling, then one fully connected layer.

With `norm`, a batch normalisation follows each convolution. Its running statistics are buffers and describe one peer's
own data: they are no parameters, and stay with the peer where models are averaged.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from protocols.run import ConvnetSpec
from swarm.models.classifier import SampleShape, build_quietly, fill_for_relu


class Block(nn.Module):
    """(B, before, H, W) -> (B, after, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, before: int, after: int, *, norm: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.convolution(x)))
        return F.max_pool2d(x, 2, ceil_mode=True)  # so that a single pixel stays one


class Convnet(nn.Module):
    """One block per entry of `channels`."""

    def __init__(self, spec: ConvnetSpec, shape: SampleShape) -> None:
        super().__init__()
        before, height, width = shape.channels, shape.height, shape.width
        blocks = []
        for after in spec.channels:
            blocks.append(Block(before, after, norm=spec.norm))
            before, height, width = after, -(-height // 2), -(-width // 2)
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(before * height * width, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, C, H, W) to logits (B, classes)."""
        for block in self.blocks:
            x = block(x)
        return cast("Tensor", self.output(x.flatten(1)))


def build(spec: ConvnetSpec, shape: SampleShape, seed: int) -> Convnet:
    """Build one with initial weights that depend on the seed alone."""
    module = cast("Convnet", build_quietly(lambda: Convnet(spec, shape), spec.dtype))
    fill_for_relu(module, seed=seed, output="output.weight")
    return module
