"""What is known of the mode `collective` without torch."""

from __future__ import annotations

from typing import Final

from protocols.run import RunSpec
from swarm.mode_info import Metric, ModeInfo, Wishes

MODE: Final = "collective"
OUTER: Final = "outer"
"""The outer state, whole: on disk. Its fragments, `outer/0` and so on, are what members fetch."""


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
    summary="a whole model on every peer; groups average how far they have come, now and then (DiLoCo)",
    build="swarm.collective.mode:CollectiveMode",
    shown=(
        *("step", "steps", "loss", "held_out_loss", "accuracy", "rounds", "rounds_missed"),
        *("last_round_seconds", "group", "bytes_per_step", "joined_early", "waiting_for"),
    ),
    measure="swarm.learner.measure:measure",
    metrics=(
        Metric(
            key="accuracy", help="Of the outer parameters on held-out data, 0 to 1.", scale=0.01
        ),
        Metric(key="rounds", counts=True, help="Averages of a fragment that succeeded."),
        Metric(key="rounds_missed", counts=True, help="Averages of a fragment that did not."),
        Metric(key="group", help="Peers in the last average."),
        Metric(key="joined_early", counts=True, help="Rounds joined before all local steps."),
        Metric(key="adoptions", counts=True, help="Outer states taken over from members."),
        Metric(key="rollbacks", counts=True, help="Returns to the outer parameters."),
        Metric(key="last_round_seconds", help="Since the last average that succeeded."),
    ),
    check_wishes=check_wishes,
    check_data=check_data,
    checkpoint_parts=lambda run: (OUTER,),
    check_start="swarm.collective.start:check_start",
)
