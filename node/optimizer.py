"""`murmura.Optimizer`: a torch optimizer whose model is averaged with those of other peers.

with murmura.join(invite) as swarm:
    optimizer = murmura.Optimizer(swarm, torch.optim.SGD(model.named_parameters(), lr=0.1))
    for x, y in batches:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch

from node.embedded import Swarm
from node.errors import ConfigError, NodeError
from protocols.collective.settings import CollectiveSpec
from protocols.gossip.settings import GossipSpec
from protocols.run import RunSpec, ScriptDataSpec, ScriptModelSpec, SgdSpec, TrainingSpec
from swarm.collective.script import ScriptCollectiveMode
from swarm.gossip.script import ScriptGossipMode
from swarm.learner.script import (
    WITHOUT_END,
    NetworkEndedError,
    ScriptLearner,
    ScriptThread,
    model_spec,
    named_parameters,
)
from swarm.mode import Mode, RunContext

Strategy: TypeAlias = GossipSpec | CollectiveSpec
_MODES: Final[dict[str, Callable[[RunContext, ScriptLearner, ScriptThread], Mode]]] = {
    "gossip": ScriptGossipMode,
    "collective": ScriptCollectiveMode,
}


def script_run(
    name: str, optimizer: torch.optim.Optimizer, strategy: Strategy | None = None
) -> RunSpec:
    """Return a run for scripts that train a model like this one; by gossip, if nothing else is said."""
    strategy = strategy or GossipSpec()
    return RunSpec(
        name=name,
        mode="collective" if isinstance(strategy, CollectiveSpec) else "gossip",
        data=ScriptDataSpec(kind="script"),
        model=model_spec(optimizer),
        optimizer=SgdSpec(kind="sgd"),  # of no effect: the script brings its own
        training=TrainingSpec(steps=WITHOUT_END, evaluate_every=0),
        table=strategy,
    )


class Optimizer:
    """Steps a torch optimizer, and takes part in the run between two steps.

    The model is the script's own; its parameters are moved into one block of memory, which torch does not notice. Making it
    waits until there is a model to go on from: the script's, or a neighbour's where the run is under way.

    Args:
      swarm: entered already.
      optimizer: any of torch.optim, over `model.named_parameters()` (names) or `model.parameters()` (numbers).
      strategy: how to average. None takes the run's; another one than the run's is refused.
    Raises:
      NodeError: the run is of another model, or of another mode.
    """

    def __init__(
        self,
        swarm: Swarm,
        optimizer: torch.optim.Optimizer,
        *,
        strategy: Strategy | None = None,
    ) -> None:
        _check(swarm, optimizer, strategy)
        self._optimizer = optimizer
        self._thread = ScriptThread()
        self._learner = ScriptLearner(optimizer)
        swarm.take_part(
            lambda context: _MODES[swarm.run.mode](context, self._learner, self._thread),
            on_end=self._thread.end,
        )
        self._until_batch()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The torch optimizer's own, so that schedulers of the learning rate work."""
        return self._optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, loss: float | None = None) -> None:
        """Do the optimizer's step, then what the swarm wants done with the model.

        Args:
          loss: of the batch, for the status.
        """
        self._optimizer.step()
        if loss is not None:
            self._learner.loss = float(loss)
        self._thread.batch_done()
        self._until_batch()

    def _until_batch(self) -> None:
        try:
            self._thread.until_batch()
        except NetworkEndedError as error:
            raise NodeError(f"the network has ended: {error}") from error


def _check(swarm: Swarm, optimizer: torch.optim.Optimizer, strategy: Strategy | None) -> None:
    run = swarm.run
    if run.mode not in _MODES or not isinstance(run.model, ScriptModelSpec):
        raise ConfigError(
            f"the run {run.name} is of mode {run.mode} with a {run.model.kind} model, which no script trains",
            "murmura.script_run(name, optimizer) makes a run for scripts",
        )
    try:
        found = model_spec(optimizer)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if found.sha256 != run.model.sha256:
        raise ConfigError(
            f"the run {run.name} is of another model: {run.model.parameters:,} parameters, this one has "
            f"{found.parameters:,}; names, shapes and dtypes must be the same",
            "build the model as the script that began the run does",
        )
    if run.mode == "collective" and named_parameters(optimizer)[0][1].dtype != torch.float32:
        raise ConfigError("the parameters of a model in a run of mode collective must be float32")
    if strategy is not None and strategy != run.table:
        raise ConfigError(
            "this strategy is not the run's",
            "leave `strategy` away: the run says how peers average",
        )
