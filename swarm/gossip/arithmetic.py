"""Averaging of flat models with variance correction (arXiv:2404.04616), with defences against liars among neighbours.

Averaging k unrelated models divides the variance of each tensor by k, and signals fade layer by layer. So after
averaging each tensor is scaled around its mean until it has its variance again: median or mean of the received ones.

Where this differs from the authors' code, on purpose:
- Their eps of 1e-4 is as large as a layer's variance (4,096 wide: 2.4e-4), and corrects it only half. Ours is 1e-12 of
  it, and a tensor without spread (zero biases, norm weights of one) is left alone.
- Their own variance is read after the model was mixed. Ours is read first.
- Their mean of received variances is what one liar likes it to be. The default is the median.

Passes over memory for k models of n numbers: two over each received model when it arrives (`moments`), two more when it
is averaged (distance, sum), five over our own. torch.var_mean is not used: it took 19 ms where the two passes take 2
(4 M float32, one core).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.gossip.settings import GossipSpec
from swarm.gossip.table import Table

EPS: Final = 1e-12
"""Relative to the target variance: only keeps a quotient of two tiny numbers finite."""
ROUNDING: Final = {torch.float32: 2.0**-44, torch.float64: 2.0**-102}
"""Variance over squared mean, below which a tensor's spread is nothing but rounding (4 units in the last place)."""
JUDGED_ELEMENTS: Final = 64
"""Smaller tensors do not count in `refused_rows`: their variance is a poor estimate."""
JUDGED_VARIANCE: Final = 1e-8
"""Nor those whose median is below this: biases that hardly anybody has trained yet."""
_BLOCK: Final = 1 << 15
"""Numbers worked on at a time: 128 KiB of float32 stay in the second-level cache between two operations."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and unbiased variance of each tensor of a table."""

    means: tuple[float, ...]
    variances: tuple[float, ...]
    """0 exactly for tensors of one number, and where there is nothing but rounding."""

    @property
    def finite(self) -> bool:
        """Whether every number is finite, and no tensor is so large that its variance overflows."""
        return math.isfinite(sum(self.means)) and math.isfinite(sum(self.variances))


@dataclass(frozen=True, slots=True)
class Averaging:
    """What one averaging did."""

    refused: tuple[int, ...]
    """Rows of `received` left out for their variance."""
    scales: tuple[float, ...]
    """Of each tensor; 1 where nothing was corrected. Fades to 1 as the models come to agree."""
    finite: bool


def moments(vector: Tensor, table: Table) -> Moments:
    """Return the moments of every tensor.

    Args:
      vector: (table.elements,) float32 or float64. Any values; infinite and NaN show in `finite`.
    """
    means, variances = [], []
    scratch = torch.empty(min(_BLOCK, table.elements), dtype=vector.dtype)
    rounding = ROUNDING[vector.dtype]
    for start, end in table.bounds:
        tensor = vector[start:end]
        mean = float(tensor.sum()) / (end - start)
        means.append(mean)
        if end - start == 1:
            variances.append(0.0)
            continue
        variance = _squares_around(tensor, mean, scratch) / (end - start - 1)
        variances.append(0.0 if variance <= rounding * mean * mean else variance)
    return Moments(tuple(means), tuple(variances))


def average_(
    own: Tensor,
    received: Sequence[Tensor],
    received_moments: Sequence[Moments],
    table: Table,
    spec: GossipSpec,
    *,
    base: Tensor | None = None,
) -> Averaging:
    """Average the received models into our own, in place.

    With `base` the average is of what peers pushed, ours included, and what we have trained since is added to it. So a
    push that follows at once holds the newest batch in full and the news of the neighbours as well; averaging the trained
    model instead would leave of the batch only `own_share`. A tensor that was corrected by a factor was averaged of models
    that have little in common, and an update computed for one of them is worth less: it is divided by the factor.

    Args:
      own: (table.elements,) float32 or float64; finite.
      base: the same shape: `own` as it was pushed last. Changed in place to what was averaged, so that a second average
        before the next push does not count the first one twice. None: `own` itself, as in the paper.
      received: k >= 1 models of the same shape and dtype, finite, from distinct senders, none of them `own`.
      received_moments: of each of them.
    """
    if not received or len(received) != len(received_moments):
        raise LocalProtocolError("averaging takes at least one model, and the moments of each")
    if base is None:
        return _average_(own, received, received_moments, table, spec)
    update = own - base
    done = _average_(base, received, received_moments, table, spec)
    if len(done.refused) < len(received):
        own.copy_(base)
        for (start, end), scale in zip(table.bounds, done.scales, strict=True):
            own[start:end].add_(update[start:end], alpha=1.0 / scale)
    return done


def _average_(
    own: Tensor,
    received: Sequence[Tensor],
    received_moments: Sequence[Moments],
    table: Table,
    spec: GossipSpec,
) -> Averaging:
    own_variances = moments(own, table).variances  # first: below, `own` is mixed in place
    variances = [moment.variances for moment in received_moments]
    refused = refused_rows(own_variances, variances, table, factor=spec.variance_factor)
    kept = [row for row in range(len(received)) if row not in refused]
    if not kept:
        return Averaging(refused, (1.0,) * len(table.bounds), finite=True)
    models = [received[row] for row in kept]
    weights = clip_weights(own, models) if spec.clip else [1.0] * len(models)
    share = (1.0 - spec.own_share) / len(models)
    _mix_(own, models, [share * weight for weight in weights])
    mixed = moments(own, table)
    scales = [1.0] * len(table.bounds)
    if spec.correct:
        targets = target_variances(own_variances, [variances[row] for row in kept], spec)
        scales = [scale_of(t, v) for t, v in zip(targets, mixed.variances, strict=True)]
        _rescale_(own, table, mixed.means, scales)
    return Averaging(refused, tuple(scales), finite=mixed.finite and math.isfinite(sum(scales)))


def refused_rows(
    own: Sequence[float],
    received: Sequence[Sequence[float]],
    table: Table,
    *,
    factor: float,
) -> tuple[int, ...]:
    """Return which models to leave out: one of their larger tensors has a variance far from the median.

    The median is of all models, our own included. With fewer than three there is none to speak of: a single model is then
    compared with our own, and may be off by the factor's square.
    """
    refused: set[int] = set()
    if not factor:
        return ()
    for column, (start, end) in enumerate(table.bounds):
        if end - start < JUDGED_ELEMENTS:
            continue
        values = [row[column] for row in received]
        alone = len(values) < 2
        middle = own[column] if alone else statistics.median([own[column], *values])
        limit = factor * factor if alone else factor
        if middle < JUDGED_VARIANCE:
            continue
        for row, value in enumerate(values):
            if not middle / limit <= value <= middle * limit:
                refused.add(row)
    return tuple(sorted(refused))


def clip_weights(own: Tensor, models: Sequence[Tensor]) -> list[float]:
    """Return by what to shorten each model's difference from our own: to the median of their lengths at most.

    Self-centred clipping (He, Karimireddy, Jaggi 2022, arXiv:2202.01545) with a radius that follows the neighbours.
    """
    lengths = [_distance(own, model) for model in models]
    limit = statistics.median(lengths)
    return [1.0 if length <= limit else limit / length for length in lengths]


def target_variances(
    own: Sequence[float], received: Sequence[Sequence[float]], spec: GossipSpec
) -> list[float]:
    """Return the variance that each tensor is to have."""
    if spec.target == "own":
        return list(own)
    columns = zip(*received, strict=True)
    if spec.target == "median":
        return [statistics.median(column) for column in columns]
    means = [math.fsum(column) / len(received) for column in columns]
    if spec.target == "mean":
        return means
    c = spec.own_share
    return [c * mine + (1 - c) * theirs for mine, theirs in zip(own, means, strict=True)]


def scale_of(target: float, variance: float) -> float:
    """Return by what a tensor's spread is to be multiplied. 1 when there is none, or none is wanted.

    A target of 0 is that of neighbours who have not trained a bias yet: no reason to undo ours.
    """
    if target <= 0.0 or variance <= 0.0:
        return 1.0
    eps = EPS * target
    return math.sqrt((target + eps) / (variance + eps))


def _mix_(own: Tensor, models: Sequence[Tensor], weights: Sequence[float]) -> None:
    """own <- own + sum of weight * (model - own), in place."""
    own_weight = 1.0 - math.fsum(weights)
    for start in range(0, own.numel(), _BLOCK):
        block = own[start : start + _BLOCK]
        block.mul_(own_weight)
        for model, weight in zip(models, weights, strict=True):
            block.add_(model[start : start + _BLOCK], alpha=weight)


def _rescale_(
    vector: Tensor, table: Table, means: Sequence[float], scales: Sequence[float]
) -> None:
    """Scale each tensor around its mean, in place."""
    for (start, end), mean, scale in zip(table.bounds, means, scales, strict=True):
        if scale != 1.0:
            vector[start:end].mul_(scale).add_(mean * (1.0 - scale))


def _squares_around(tensor: Tensor, mean: float, scratch: Tensor) -> float:
    """Return the sum of (x - mean)^2. Blocks are added in double precision."""
    total = 0.0
    for start in range(0, tensor.numel(), _BLOCK):
        block = tensor[start : start + _BLOCK]
        difference = torch.sub(block, mean, out=scratch[: block.numel()])
        total += float(torch.dot(difference, difference))
    return total


def _distance(a: Tensor, b: Tensor) -> float:
    scratch = torch.empty(min(_BLOCK, a.numel()), dtype=a.dtype)
    total = 0.0
    for start in range(0, a.numel(), _BLOCK):
        block = a[start : start + _BLOCK]
        difference = torch.sub(block, b[start : start + _BLOCK], out=scratch[: block.numel()])
        total += float(torch.dot(difference, difference))
    return math.sqrt(total)
