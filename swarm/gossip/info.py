"""What is known of the mode `gossip` without torch."""

from __future__ import annotations

from typing import Final

from protocols.run import RunSpec
from swarm.mode_info import Metric, ModeInfo, Wishes

MODE: Final = "gossip"
MODEL: Final = "model"
"""The one part of a peer's state."""


def check_wishes(run: RunSpec, wishes: Wishes) -> None:
    """Refuse what means nothing where every peer has a whole model."""
    if wishes.stage is not None:
        raise ValueError(f"the run {run.name} is not cut in stages: every peer has a whole model")
    if not wishes.train:
        raise ValueError(f"a peer of the run {run.name} has nothing to do but to train")


def check_data(run: RunSpec, path: str) -> str:
    """Read the run's data as a node that trains would."""
    from swarm.learner.task import open_task

    task = open_task(run, path=path)
    return f"{run.data.kind}, cut in {task.partitions}"


INFO: Final = ModeInfo(
    name=MODE,
    summary="a whole model on every peer, averaged with those of neighbours; nobody waits for anybody",
    build="swarm.gossip.mode:GossipMode",
    shown=(
        *("step", "steps", "loss", "held_out_loss", "accuracy", "neighbours_live", "pushes_taken"),
        *("averages", "scale_median", "scale_max", "models_refused", "partition", "waiting_for"),
    ),
    measure="swarm.learner.measure:measure",
    metrics=(
        Metric(key="accuracy", help="Of this peer's model on held-out data, 0 to 1."),
        Metric(key="neighbours_live", help="Neighbours with whom models are exchanged."),
        Metric(key="averages", counts=True, help="Averages of this model with neighbours'."),
        Metric(key="pushes_taken", help="Models pushed that the present neighbours took."),
        Metric(key="models_refused", help="Models of the present neighbours that were refused."),
        Metric(key="rollbacks", counts=True, help="Returns to the last finite model."),
        Metric(key="scale_median", help="Variance correction of a tensor, the median."),
        Metric(key="scale_max", help="Variance correction of a tensor, the largest."),
        Metric(key="models_held_bytes", help="Models of neighbours that wait to be averaged."),
    ),
    check_wishes=check_wishes,
    check_data=check_data,
    checkpoint_parts=lambda run: (MODEL,),
    check_start="swarm.gossip.start:check_start",
    options={
        "consensus": "write the mean of the neighbours' newest models and our own instead of our own"
    },
)
