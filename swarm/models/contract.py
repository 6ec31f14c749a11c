"""What every kind of model offers, built in or installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from swarm.models.cut import Cut


class StageModule(nn.Module):
    """One stage of a model.

    `forward` maps activations (B, T, width) to the same shape; the first stage takes tokens (B, T) instead, the last
    one returns logits (B, T, vocabulary). Parameter names are those of the whole model, so they do not depend on the
    cut. No buffer, dropout or other state may change between calls: any replica must give the same answer.
    """

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return each sequence's mean cross entropy in nats per token, (B,). The last stage only."""
        raise NotImplementedError("only the last stage has a loss")


BuildStage: TypeAlias = Callable[[Any, Cut, int], StageModule]
"""(spec, cut, seed) -> module on the CPU. The spec is of the run file's kind that names the model. Weights depend on the seed and the parameter's name alone
(`swarm.models.initial`)."""
