"""A mixture of remote experts as an ordinary module.

Letters: R rows, C width, G groups of rows that are routed together (R when each row is routed alone), N experts looked at,
M rows over all calls of one forward pass.

Source: Ryabinin and Gusev 2020, arXiv:2002.04013. Weights are a softmax over the experts that answered; what failed is asked of
others, and only rows with fewer than `k_min` answers in the end are an error. Gradients flow to inputs and gate through the
experts that answered; one that does not answer the backward pass gives none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from moe.errors import TooFewExpertsError
from moe.gate import CosineGate, ProductKeyGate, balance_loss, expert_scores
from moe.network import Answered, ExpertNetwork
from protocols.experts.dispatch import absurd
from protocols.experts.uid import ExpertUID, Grid

ROUNDS_MAX: Final = 4
"""Choices of other experts for rows that have too few answers."""
BEAM_MIN: Final = 16
"""Rows of one batch like different experts; the search finds so many for all of them, from which each row chooses."""


@dataclass(slots=True)
class _Call:
    """One expert that answered, for some rows."""

    answered: Answered
    column: int
    """Of the scores."""
    groups: Tensor
    """(g,) int64"""
    rows: Tensor
    """(m,) int64"""
    x: Tensor
    """(m, C)"""


@dataclass(slots=True)
class LayerStats:
    """What a layer has seen."""

    experts_missing: int = 0
    """Experts asked for a forward pass that did not answer rightly."""
    gradients_missing: int = 0
    rerouted_groups: int = 0
    loads: dict[ExpertUID, int] = field(default_factory=dict)
    """Rows sent to each expert."""


class RemoteMixtureOfExperts(nn.Module):
    """Sends each row to the k experts of its gate's choice and returns the weighted sum of their outputs.

    Args:
      network: finds and asks experts.
      grid: the layer's name and the sizes of its grid.
      width: of the input and the output.
      k: experts for each row, or sample.
      k_min: fewer answers are an error.
      route: `sample` decides once for each sample, by the mean over its middle dimensions.
      scores: the kind of gate.
      noise: standard deviation of the noise on scores in training.
    """

    def __init__(
        self,
        network: ExpertNetwork,
        grid: Grid,
        width: int,
        *,
        k: int = 4,
        k_min: int = 1,
        route: Literal["token", "sample"] = "token",
        scores: Literal["product", "cosine"] = "product",
        noise: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= k_min <= k:
            raise ValueError(f"k_min must be 1 to k ({k}), not {k_min}")
        gate = CosineGate if scores == "cosine" else ProductKeyGate
        self.gate = gate(width, grid.sizes, noise=noise, generator=generator)
        self.grid = grid
        self.k = k
        self.k_min = k_min
        self.route = route
        self._network = network
        self.stats = LayerStats()
        self.balance: Tensor = torch.zeros(())
        """Of the last forward pass: add it, weighted, to the loss. See `moe.gate.balance_loss`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C). Raises TooFewExpertsError."""
        rows = x.reshape(-1, x.shape[-1])  # (R, C)
        groups, size = self._groups(x, rows)  # (G, C); R = G * size
        scores, uids = self._scores(groups)  # (G, N)
        calls, answered = self._ask(rows.detach(), size, scores.detach(), uids)
        weights = scores.masked_fill(~answered, -torch.inf).softmax(dim=1)  # (G, N)
        return _combine(self._network, rows, calls, weights, self.stats).view(x.shape)

    def _groups(self, x: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        if self.route == "token" or x.dim() < 3:
            return rows, 1
        means = x.flatten(1, -2).mean(dim=1)  # (samples, C)
        return means, len(rows) // len(means)

    def _scores(self, groups: Tensor) -> tuple[Tensor, Sequence[ExpertUID]]:
        """Return the scores of the experts that are looked at, with noise in training, and set `balance`."""
        coordinates = self.gate(groups)  # (G, S_i) for each i
        best = [of.detach().amax(dim=0).tolist() for of in coordinates]
        uids = self._network.find(self.grid, best, beam=max(BEAM_MIN, 4 * self.k))
        if not uids:
            raise TooFewExpertsError(self.grid.layer, rows=len(groups), k_min=self.k_min, tried=())
        places = torch.tensor([uid.place for uid in uids], device=groups.device)  # (N, D)
        scores = expert_scores(coordinates, places)
        chosen = scores.topk(min(self.k, len(uids)), dim=1).indices
        self.balance = balance_loss(scores, chosen)
        return scores, uids

    @torch.no_grad()
    def _ask(
        self, rows: Tensor, size: int, scores: Tensor, uids: Sequence[ExpertUID]
    ) -> tuple[list[_Call], Tensor]:
        """Ask experts until every group has its answers. Return the calls, and who answered whom: (G, N) bool."""
        answered = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        tried = answered.clone()
        calls: list[_Call] = []
        wanting = torch.arange(len(scores), device=scores.device)  # groups that want more answers
        for round_index in range(ROUNDS_MAX):
            missing = self.k if round_index == 0 else 1
            chosen = self._choose(scores, tried, wanting, missing)
            if not chosen:
                break
            made = self._call(rows, size, uids, chosen)
            dead = {column for column, _ in chosen} - {call.column for call in made}
            for column, groups in chosen:
                tried[groups, column] = True
            for column in dead:
                tried[:, column] = True  # it failed for some: not asked again for others
            for call in made:
                answered[call.groups, call.column] = True
            calls += made
            wanting = (answered.sum(dim=1) < self.k_min).nonzero().flatten()
            if not len(wanting):
                return calls, answered
            self.stats.rerouted_groups += len(wanting)
        names = [uid for column, uid in enumerate(uids) if bool(tried[:, column].any())]
        raise TooFewExpertsError(
            self.grid.layer, rows=len(wanting) * size, k_min=self.k_min, tried=names
        )

    def _choose(
        self, scores: Tensor, tried: Tensor, wanting: Tensor, count: int
    ) -> list[tuple[int, Tensor]]:
        """Return which columns are asked for which groups next."""
        open_scores = scores[wanting].masked_fill(tried[wanting], -torch.inf)  # (w, N)
        best = open_scores.topk(min(count, scores.shape[1]), dim=1)
        usable = best.values > -torch.inf
        return [
            (column, wanting[((best.indices == column) & usable).any(dim=1)])
            for column in sorted(set(best.indices[usable].tolist()))
        ]

    def _call(
        self,
        rows: Tensor,
        size: int,
        uids: Sequence[ExpertUID],
        chosen: Sequence[tuple[int, Tensor]],
    ) -> list[_Call]:
        """Ask these experts at once, and leave out answers that cannot be used."""
        width = rows.shape[1]
        offsets = torch.arange(size, device=rows.device)
        indices = [(groups[:, None] * size + offsets).flatten() for _, groups in chosen]
        inputs = [rows.index_select(0, index) for index in indices]
        requests = [(uids[column], x) for (column, _), x in zip(chosen, inputs, strict=True)]
        found = self._network.forward(requests, out_row=(width,))
        calls = [
            _Call(answer, column, groups, index, x)
            for answer, (column, groups), index, x in zip(
                found, chosen, indices, inputs, strict=True
            )
            if answer is not None
        ]
        for uid, x in requests:
            self.stats.loads[uid] = self.stats.loads.get(uid, 0) + len(x)
        kept = self._without_absurd(calls, float(rows.square().mean().sqrt()))
        self.stats.experts_missing += len(requests) - len(kept)
        return kept

    def _without_absurd(self, calls: list[_Call], input_size: float) -> list[_Call]:
        sizes = [float(call.answered.y.square().mean().sqrt()) for call in calls]
        wrong = set(absurd(sizes, input_size))
        for index in wrong:
            self._network.wrong(calls[index].answered, "an output far larger than all others")
        return [call for index, call in enumerate(calls) if index not in wrong]


def _combine(
    network: ExpertNetwork, rows: Tensor, calls: Sequence[_Call], weights: Tensor, stats: LayerStats
) -> Tensor:
    """Return the weighted sum of the outputs, (R, C), with a graph that leads back through the calls."""
    index = torch.cat([call.rows for call in calls])  # (M,)
    columns = torch.cat([torch.full_like(call.rows, call.column) for call in calls])  # (M,)
    if torch.is_grad_enabled():
        # The second tensor makes autograd come back here even when the rows need no gradient.
        hook = torch.empty((), requires_grad=True)
        y: Any = _Outputs.apply(rows, hook, network, calls, stats)  # type: ignore[no-untyped-call]
    else:
        y = torch.cat([call.answered.y for call in calls])  # (M, C)
    size = len(rows) // len(weights)
    shares = weights[index // size, columns]  # (M,)
    out = torch.zeros_like(rows)
    return out.index_add(0, index, shares[:, None] * y)


class _Outputs(torch.autograd.Function):
    """The outputs of all calls, one after the other; its backward asks the experts for the inputs' gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        hook: Tensor,
        network: ExpertNetwork,
        calls: Sequence[_Call],
        stats: LayerStats,
    ) -> Tensor:
        ctx.network, ctx.calls, ctx.stats = network, calls, stats
        ctx.shape = rows.shape
        return torch.cat([call.answered.y for call in calls])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        calls: Sequence[_Call] = ctx.calls
        pieces = torch.split(grad_y, [len(call.x) for call in calls])
        found = ctx.network.backward(
            [
                (call.answered, call.x, piece.contiguous())
                for call, piece in zip(calls, pieces, strict=True)
            ]
        )
        grad_x = grad_y.new_zeros(ctx.shape)
        for call, grad in zip(calls, found, strict=True):
            if grad is None:
                ctx.stats.gradients_missing += 1
            else:
                grad_x.index_add_(0, call.rows, grad)
        return grad_x, None, None, None, None
