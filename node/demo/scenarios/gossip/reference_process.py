"""`python -m node.demo.scenarios.gossip.reference_process RUN KILL_AT JOIN_AT MODEL...`: what the swarm is compared with.

One JSON object per line on stdout: {"doing"} while it works, then the comparison.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from node.demo.scenarios.gossip.plan import PEERS
from node.demo.scenarios.gossip.simulated import Events, SimulatedSwarm
from node.runfile import read_run_file
from protocols.gossip.settings import GossipSpec
from protocols.run import RunSpec
from swarm.learner.learner import Learner
from swarm.learner.task import ClassificationTask, ShuffledBatches, open_task

TARGET: Final = 90.0
"""Percent, over all peers that live."""
PLAIN_STEPS: Final = 3.5
"""The plain run is given so many times the steps of ours; never reached counts as its last step."""
PLAIN: Final = {"correct": False, "clip": False, "variance_factor": 0.0, "own_share": 0.5}
"""Gossip averaging as it was: the mix of the paper's baseline, without correction, refusals or clipping."""


def main(run_file: Path, events: Events, models: list[Path]) -> None:
    """Print what is done, and the comparison."""
    torch.set_num_threads(1)
    run = read_run_file(run_file)
    task = open_task(run)
    assert isinstance(task, ClassificationTask)
    _print({"doing": "testing the models of the swarm"})
    found = [_accuracy_of(run, task, model) for model in models]
    _print({"doing": "training on all data in one process"})
    reference = _train(run, task, part=None, salt=b"reference")
    _print({"doing": "training each part of the data alone"})
    alone = [_train(run, task, part=part, salt=b"alone") for part in range(task.partitions)]
    _print({"doing": "the same swarm without the correction, in virtual time"})
    plain_at, plain_final = _plain(run, task, events)
    _print(
        {
            "accuracies": found,
            "accuracy_reference": reference,
            "accuracy_alone_mean": statistics.fmean(alone),
            "plain_exchanges": plain_at,
            "plain_exchanges_cap": PLAIN_STEPS * run.training.steps,
            "plain_accuracy": plain_final,
        }
    )


def _accuracy_of(run: RunSpec, task: ClassificationTask, model: Path) -> float:
    """Return what an exported model gets right of the test set, percent."""
    module = task.build(run.seed)
    module.load_state_dict(load_file(model), strict=True)
    return task.evaluate(module).accuracy or 0.0


def _train(run: RunSpec, task: ClassificationTask, *, part: int | None, salt: bytes) -> float:
    """Train one model on a part of the data, or on all of it, for as many batches as a peer of the swarm."""
    if part is None:
        samples, size = task.split.train, run.training.batch
        batches: Any = ShuffledBatches(samples, size, seed=f"{run.seed}:{salt.hex()}")
    else:
        batches = task.batches(part, salt=salt)
    learner = Learner(run, task, batches, seed=run.seed)
    for _ in range(run.training.steps):
        learner.train_batch()
    return learner.evaluate().accuracy or 0.0


def _plain(run: RunSpec, task: ClassificationTask, events: Events) -> tuple[float | None, float]:
    """Return after how many exchanges plain gossip is at the target, with the demo's events, and how far it gets."""
    steps = int(PLAIN_STEPS * run.training.steps)
    longer = dataclasses.replace(run, training=dataclasses.replace(run.training, steps=steps))
    spec = dataclasses.replace(run.settings(GossipSpec), neighbours_to_start=0, **PLAIN)  # type: ignore[arg-type]
    course = SimulatedSwarm(longer, task, spec, peers=PEERS, seed=run.seed).play(events)
    return course.first_at(TARGET), course.accuracy[-1]


def _print(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _, run_file, kill_at, join_at, *model_files = sys.argv
    main(
        Path(run_file),
        Events(kill_at=int(kill_at), join_at=int(join_at)),
        [Path(model) for model in model_files],
    )
