"""A collective run that goes on from the outer state of another one: whether the file fits."""

from __future__ import annotations

from collections.abc import Collection

from protocols.collective.settings import CollectiveSpec
from protocols.run import RunSpec
from swarm.collective.holder import Holder
from swarm.data.errors import DataError
from swarm.learner.learner import Learner
from swarm.learner.task import open_task
from swarm.state.checkpoint import Checkpoint
from swarm.state.initial import check_whole
from swarm.state.snapshot import expected_specs


def check_start(run: RunSpec, checkpoints: Collection[Checkpoint]) -> None:
    """Tell whether the run's outer state can be made of this file. Raises StartMisfitError.

    What cannot be built without the run's data, where that is not here, is not looked at: a node says so when it begins.
    """
    try:
        task = open_task(run)
    except DataError:
        return
    learner = Learner(run, task, task.batches(0, salt=b""), seed=run.seed)
    _, tensors = Holder(learner, run.settings(CollectiveSpec)).whole()
    check_whole(expected_specs(tensors), checkpoints)
