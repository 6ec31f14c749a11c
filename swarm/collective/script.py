"""Outer steps for a model that somebody's own script trains, see `swarm.learner.script`."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, cast

import msgpack
import trio

from swarm.collective.holder import History, Holder
from swarm.collective.mode import CollectiveMode
from swarm.learner.learner import TrainedBatch
from swarm.learner.script import ScriptLearner, ScriptThread
from swarm.mode import RunContext
from swarm.resources import Resources
from swarm.tensors.wire import bytes_of

if TYPE_CHECKING:
    from trio_typing import TaskStatus


class ScriptCollectiveMode(CollectiveMode):
    """A collective run whose model a script trains."""

    def __init__(self, context: RunContext, learner: ScriptLearner, thread: ScriptThread) -> None:
        super().__init__(context)
        self._learner = learner
        self._thread = thread
        self._run_step = thread.run_batch

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        scripted = dataclasses.replace(resources, compute=cast("Any", self._thread))
        await super().run(scripted, task_status=task_status)

    async def _prepare(self, resources: Resources, *, founds: bool) -> bool:
        """The model is there already; its data is nobody else's business."""
        if self._holder is None:
            self._presence.announce(bytes(msgpack.packb({"partition": 0})))
            holder = Holder(cast("Any", self._learner), self._spec)
            holder.histories = [
                History(lines=(_line_of(holder, index),)) for index in range(len(holder.fragments))
            ]
            self._holder = holder
        return True

    def _trained(self, trained: TrainedBatch) -> None:
        super()._trained(trained)
        if self._learner.trained >= self._context.run.training.steps:
            self._thread.free.set()


def _line_of(holder: Holder, fragment: int) -> bytes:
    """Name what a script begins with: scripts draw their initial parameters by themselves, so that two differ."""
    initial = holder.fragments.gather(holder.outer.parameters, fragment)
    return hashlib.blake2b(bytes_of(initial), digest_size=16).digest()
