"""A decoder-only transformer over bytes, cut in stages. What is unusual:

- every parameter is a matrix: no biases, and norms without gains (as in nanochat)
- rotary positions (arXiv:2104.09864), so stage 0 holds no position table
- head and embedding are two matrices: they live on different peers
- smooth activation (GELU) and no zero-initialised matrix: two peers that sum the same gradients in another order
  must end up with the same weights but for rounding, so nothing may amplify rounding (docs/decisions.md)

Letters: B sequences, T tokens, C = model.width, H heads, D = C / H.
"""

from __future__ import annotations

import math
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protocols.run import ByteTransformerSpec
from swarm.models.contract import StageModule
from swarm.models.cut import Cut
from swarm.models.initial import fill_uniform

VOCABULARY: Final = 256
_ROTARY_BASE: Final = 10_000.0


def build(spec: ByteTransformerSpec, cut: Cut, seed: int) -> ByteTransformerStage:
    """Build one stage with its initial weights, on the CPU."""
    with torch.random.fork_rng(
        devices=[]
    ):  # torch's own initial values, drawn from the global generator, are not kept
        module = ByteTransformerStage(spec, cut).to(getattr(torch, spec.dtype))
    for name, parameter in module.named_parameters():
        fill_uniform(parameter, name=name, deviation=_initial_deviation(name, spec), seed=seed)
    return module


def _initial_deviation(name: str, spec: ByteTransformerSpec) -> float:
    """Residual branches are scaled down with depth (GPT-2), so that the stream keeps its size at the start."""
    if name.startswith("embedding."):
        return 1.0
    if name.startswith("head."):
        return 0.02  # nearly equal logits: the first loss is ln 256
    if name.endswith(".down.weight"):
        return 0.5 / math.sqrt(spec.width * spec.layers)
    if name.endswith(".project.weight"):
        return 1.0 / math.sqrt(2 * spec.width * spec.layers)
    return 1.0 / math.sqrt(spec.width)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key = nn.Linear(width, 2 * width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        qk = self.query_key(x).view(B, T, 2 * self.heads, C // self.heads)  # (B, T, 2H, D)
        q, k = _rotate(qk, cos, sin).transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D) each
        v = self.value(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return cast("Tensor", self.project(y.transpose(1, 2).reshape(B, T, C)))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle. x: (B, T, heads, D); cos, sin: (T, 1, D/2)."""
    a, b = x.chunk(2, dim=-1)  # (B, T, heads, D/2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(_norm(x), cos, sin)  # (B, T, C)
        return cast("Tensor", x + self.mlp(_norm(x)))  # (B, T, C)


class ByteTransformerStage(StageModule):
    """A contiguous slice of the network. Parameter names are those of the whole model."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: ByteTransformerSpec, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        if cut.is_first:
            self.embedding = nn.Embedding(VOCABULARY, spec.width)
        self.layers = nn.ModuleDict(
            {str(index): Layer(spec.width, spec.heads) for index in cut.layers}
        )
        if cut.is_last:
            self.head = nn.Linear(spec.width, VOCABULARY, bias=False)
        cos, sin = _rotary_tables(spec.context, spec.width // spec.heads)
        self.register_buffer("cos", cos, persistent=False)  # (context, 1, D/2)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T) or activations (B, T, C) to activations (B, T, C), or at the last stage to logits (B, T, 256)."""
        if self.cut.is_first:
            x = self.embedding(x.int())  # (B, T, C)
        T = x.size(1)
        for layer in self.layers.values():
            x = layer(x, self.cos[:T], self.sin[:T])
        return cast("Tensor", self.head(_norm(x))) if self.cut.is_last else x

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return each sequence's mean cross entropy in nats per token, (B,). The last stage only."""
        logits = self(x)  # (B, T, 256)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), reduction="none")
        return losses.view(targets.shape).mean(dim=1)


def _rotary_tables(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    pairs = head_width // 2
    frequencies = _ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)  # (D/2,)
    angles = (
        torch.arange(context, dtype=torch.float64)[:, None, None] * frequencies
    )  # (context, 1, D/2)
    return angles.cos(), angles.sin()
