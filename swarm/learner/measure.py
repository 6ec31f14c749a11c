"""How fast this machine trains a whole model: what `murmura bench` shows of a gossip run. Loads torch."""

from __future__ import annotations

from collections.abc import Iterator

from protocols.run import RunSpec
from swarm.learner.learner import Learner
from swarm.learner.task import open_task
from swarm.measuring import Measured, rate


def measure(run: RunSpec, path: str, seconds: float) -> Iterator[Measured]:
    """Yield the samples a second of training alone, on the run's data. Raises swarm.data.errors.DataError."""
    task = open_task(run, path=path)
    learner = Learner(run, task, task.batches(0, salt=b"bench"), seed=run.seed)
    yield Measured(
        "whole model", run.training.batch * rate(learner.train_batch, seconds), "samples/s"
    )
