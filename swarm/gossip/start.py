"""A gossip run that goes on from one peer's model in another gossip run: whether the file fits."""

from __future__ import annotations

from collections.abc import Collection

from protocols.frames import TensorSpec
from protocols.run import RunSpec
from swarm.data.errors import DataError
from swarm.hosting.module import HostedModule
from swarm.learner.task import open_task
from swarm.state.checkpoint import Checkpoint
from swarm.state.initial import check_whole
from swarm.state.snapshot import expected_specs


def check_start(run: RunSpec, checkpoints: Collection[Checkpoint]) -> None:
    """Tell whether the run's model can be made of this file. Raises StartMisfitError.

    What cannot be built without the run's data, where that is not here, is not looked at: a node says so when it begins.
    """
    try:
        specs = model_specs(run)
    except DataError:
        return
    check_whole(specs, checkpoints)


def model_specs(run: RunSpec) -> dict[str, TensorSpec]:
    """Name all that a peer's training depends on. Raises DataError."""
    hosted = HostedModule(open_task(run).build(run.seed), run.optimizer)
    return expected_specs(hosted.snapshot())
