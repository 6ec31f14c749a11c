"""A byte transformer whose feed-forward layers are mixtures: remote ones, or all in one process to compare with.

Experts have the shape of the byte transformer's own feed-forward layer. Every node builds an expert with the same initial
weights, from the run's seed and the expert's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe.gate import CosineGate, ProductKeyGate, balance_loss, expert_scores
from moe.info import EXPERT_PREFIX
from moe.layer import RemoteMixtureOfExperts
from moe.network import ExpertNetwork
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID, Grid
from protocols.run import ByteTransformerSpec
from swarm.models import byte_transformer
from swarm.models.byte_transformer import ByteTransformerStage
from swarm.models.classifier import build_quietly
from swarm.models.cut import cut_of
from swarm.models.initial import fill_uniform


class FeedForward(nn.Module):
    """An expert: two matrices and a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, C) to (R, C)."""
        return cast("Tensor", self.down(F.gelu(self.up(x))))


def build_feed_forward(
    model: ByteTransformerSpec, spec: MoeSpec, uid: ExpertUID, seed: int
) -> FeedForward:
    """Build one expert with its initial weights."""
    expert = cast(
        "FeedForward", build_quietly(lambda: FeedForward(model.width, spec.hidden), model.dtype)
    )
    # The residual branches are scaled down with depth, as in the byte transformer.
    deviations = {
        "up.weight": 1.0 / math.sqrt(model.width),
        "down.weight": 1.0 / math.sqrt(spec.hidden * model.layers),
    }
    for name, parameter in expert.named_parameters():
        fill_uniform(parameter, name=f"experts.{uid}.{name}", deviation=deviations[name], seed=seed)
    return expert


def build_trunk(
    model: ByteTransformerSpec, seed: int, mixture: Callable[[int], nn.Module]
) -> ByteTransformerStage:
    """Build the whole transformer, with `mixture(index)` as the feed-forward layer of each layer.

    The mixtures' own parameters (gates, usually) get initial weights here; those of experts are left alone.
    """
    stage = byte_transformer.build(model, cut_of(layers=model.layers, stages=1, stage=0), seed)
    for index, layer in stage.layers.items():
        made = build_quietly(lambda index=index: mixture(int(index)), model.dtype)  # type: ignore[misc]
        cast("Any", layer).mlp = made
    for name, parameter in stage.named_parameters():
        if ".mlp.gate." in name and parameter.dim() == 2:
            deviation = 1.0 / math.sqrt(parameter.shape[1])
            fill_uniform(parameter, name=name, deviation=deviation, seed=seed)
    return stage


def build_remote(
    model: ByteTransformerSpec, spec: MoeSpec, seed: int, network: ExpertNetwork
) -> ByteTransformerStage:
    """Build the transformer that a node trains: everything but the experts."""
    grids = spec.grids(model.layers)

    def mixture(index: int) -> nn.Module:
        return RemoteMixtureOfExperts(
            network,
            grids[index],
            model.width,
            k=spec.k,
            k_min=spec.k_min,
            route=spec.route,
            scores=spec.scores,
            noise=spec.noise,
        )

    return build_trunk(model, seed, mixture)


def build_local(model: ByteTransformerSpec, spec: MoeSpec, seed: int) -> ByteTransformerStage:
    """Build the same transformer with all experts in it."""
    grids = spec.grids(model.layers)

    def mixture(index: int) -> nn.Module:
        experts = {uid: build_feed_forward(model, spec, uid, seed) for uid in grids[index].uids()}
        return LocalMixture(grids[index], experts, model.width, spec)

    return build_trunk(model, seed, mixture)


def mixtures(stage: nn.Module) -> Iterable[Any]:
    """Yield the mixtures of a transformer, remote or local, in order."""
    for layer in cast("Any", stage).layers.values():
        yield layer.mlp


class LocalMixture(nn.Module):
    """What RemoteMixtureOfExperts computes when every expert answers, in one process. Routes tokens only."""

    def __init__(
        self, grid: Grid, experts: dict[ExpertUID, FeedForward], width: int, spec: MoeSpec
    ) -> None:
        super().__init__()
        if spec.route != "token":
            raise ValueError("only routing by token is offered in one process")
        gate = CosineGate if spec.scores == "cosine" else ProductKeyGate
        self.gate = gate(width, grid.sizes, noise=spec.noise)
        self.k = spec.k
        self.experts = nn.ModuleDict(
            {str(uid).replace(".", "-"): module for uid, module in experts.items()}
        )
        self.places = torch.tensor([uid.place for uid in experts])
        self.balance: Tensor = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        rows = x.reshape(-1, x.shape[-1])  # (R, C)
        scores = expert_scores(self.gate(rows), self.places)  # (R, N)
        best = scores.topk(self.k, dim=1)
        self.balance = balance_loss(scores, best.indices)
        weights = best.values.softmax(dim=1)  # (R, k)
        out = torch.zeros_like(rows)
        for column, expert in enumerate(self.experts.values()):
            row, place = (best.indices == column).nonzero(as_tuple=True)
            y = expert(rows[row])  # (m, C); m may be 0, and the expert's gradient is 0 then
            out = out.index_add(0, row, weights[row, place, None] * y)
        return out.view(x.shape)


def expert_parameter(uid: ExpertUID, name: str) -> str:
    """Return the name of an expert's parameter in an exported model."""
    index = uid.layer.removeprefix("ffn")
    return f"layers.{index}.mlp.experts.{str(uid).replace('.', '-')}.{name}"


def name_in_model(part: str, name: str) -> str:
    """Return what a parameter of a part of the run is called in an exported model."""
    if not part.startswith(EXPERT_PREFIX):
        return name
    return expert_parameter(ExpertUID.from_text(part.removeprefix(EXPERT_PREFIX)), name)
