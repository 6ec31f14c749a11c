"""The learning task of a moe run: text, a transformer with remote experts, and a loss that keeps them evenly used."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from moe.errors import TooFewExpertsError
from moe.model import build_remote, mixtures
from moe.network import ExpertNetwork
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec, RunSpec
from swarm.learner.task import Batch, TextTask

log = logging.getLogger(__name__)

PATIENCE_S: Final = 60.0
"""A step that finds too few experts is tried again for so long: experts are adopted within seconds."""
_PAUSE_S: Final = 0.25


class MoeTask(TextTask):
    """Used on the thread that trains.

    Args:
      failed: told of every step that found too few experts, before it is tried again.
    """

    def __init__(
        self,
        run: RunSpec,
        text: bytes,
        network: ExpertNetwork,
        *,
        failed: Callable[[TooFewExpertsError], None] = lambda error: None,
    ) -> None:
        super().__init__(run, text)
        assert isinstance(run.model, ByteTransformerSpec)
        self._model = run.model
        self._moe = run.settings(MoeSpec)
        self._network = network
        self._failed = failed

    def build(self, seed: int) -> nn.Module:
        return build_remote(self._model, self._moe, seed, self._network)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over a batch, (), in training with the balance of its experts. Raises TooFewExpertsError."""
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                loss = super().loss(module, batch)
            except TooFewExpertsError as error:
                self._failed(error)
                if time.monotonic() > give_up_s:
                    raise
                log.warning("step tried again: reason=%s", error)
                time.sleep(_PAUSE_S)
                continue
            if module.training:
                balance = torch.stack([mixture.balance for mixture in mixtures(module)]).sum()
                return loss + self._moe.balance * balance
            return loss
