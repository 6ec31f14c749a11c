"""What is known of the mode `gossip` without torch."""

from __future__ import annotations

from typing import Final

from protocols.run import RunSpec
from swarm.mode_info import ModeInfo, Wishes

MODE: Final = "gossip"


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
    check_wishes=check_wishes,
    check_data=check_data,
    options={
        "consensus": "write the mean of the neighbours' newest models and our own instead of our own"
    },
)
