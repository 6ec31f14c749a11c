"""Gossip for a model that somebody's own script trains, see `swarm.learner.script`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import msgpack
import trio

from swarm.gossip.mode import GossipMode
from swarm.gossip.models import Models
from swarm.learner.learner import TrainedBatch
from swarm.learner.script import ScriptLearner, ScriptThread
from swarm.learner.task import Evaluation
from swarm.mode import RunContext
from swarm.resources import Resources

if TYPE_CHECKING:
    from trio_typing import TaskStatus


class ScriptGossipMode(GossipMode):
    """A gossip run whose model a script trains."""

    def __init__(self, context: RunContext, learner: ScriptLearner, thread: ScriptThread) -> None:
        super().__init__(context)
        self._learner = learner
        self._thread = thread
        self._run_batch = thread.run_batch

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        scripted = dataclasses.replace(resources, compute=cast("Any", self._thread))
        await super().run(scripted, task_status=task_status)

    async def _prepare(self, resources: Resources, *, founds: bool) -> bool:
        """The model is there already; its data is nobody else's business."""
        if self._models is None:
            self._presence.announce(bytes(msgpack.packb({"partition": 0})))
            self._models = Models(cast("Any", self._learner), self._spec)
        return True

    def _trained(self, trained: TrainedBatch, evaluation: Evaluation | None) -> None:
        super()._trained(trained, evaluation)
        if self._learner.trained >= self._context.run.training.steps:
            self._thread.free.set()
