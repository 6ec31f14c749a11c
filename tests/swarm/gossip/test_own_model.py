"""A peer's own model on disk: the newest that can be used, no epoch twice, and always the last batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trio

from node.checkpoints import Checkpoints
from node.config import load
from swarm.gossip.own_model import OwnModel
from swarm.learner.learner import Learner
from tests.node.test_checkpoints import COMPUTE
from tests.swarm.gossip.test_start import RUN, TASK

pytestmark = pytest.mark.trio

STEPS = RUN.training.steps
PART = "model"


def learner() -> Learner:
    return Learner(RUN, TASK, TASK.batches(1, salt=b"one"), seed=4)


def keeper(folder: Path) -> Checkpoints:
    config = load({"checkpoint_every_steps": 2}, environ={"HOME": "/"}).config
    return Checkpoints(config, folder, RUN.run_id)


def own(folder: Path, *, steps: int = STEPS, unix_s: float = 1e9) -> OwnModel:
    return OwnModel(keeper(folder), PART, steps=steps, unix_s=lambda: unix_s)


async def write(folder: Path, *counts: int) -> Learner:
    """Write the model after so many batches each."""
    trained, kept, model = learner(), keeper(folder), own(folder)
    model.new_epoch()
    for count in counts:
        while trained.trained < count:
            trained.train_batch()
        await kept.save(model.part(trained, averages=7), COMPUTE)
    return trained


def tear(folder: Path, version: int) -> None:
    path = next(folder.glob(f"**/*-{version:012d}.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_is_loaded_with_moments_and_averages(tmp_path: Path) -> None:
    async def main() -> None:
        before = await write(tmp_path, 2, 4)
        model, again = own(tmp_path), learner()
        assert await model.resume(again, COMPUTE)
        assert (again.trained, model.averages) == (4, 7)
        assert all(torch.equal(t, again.snapshot()[1][n]) for n, t in before.snapshot()[1].items())

    trio.run(main)


def test_one_from_the_future_and_a_torn_one_are_refused_and_the_one_before_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await write(tmp_path, 2, 4, 6)
        tear(tmp_path, 4)
        model, again = own(tmp_path, steps=5), learner()
        assert await model.resume(again, COMPUTE)
        assert again.trained == 2
        assert "beyond the end of the run" in caplog.text
        assert "bytes, its manifest says" in caplog.text

    trio.run(main)


def test_an_epoch_is_larger_than_all_before_though_the_clock_was_set_back(tmp_path: Path) -> None:
    async def main() -> None:
        await write(tmp_path, 2)
        model = own(tmp_path, unix_s=5e8)
        await model.resume(learner(), COMPUTE)
        assert model.new_epoch() == 10**12 + 1

    trio.run(main)


def test_the_last_batch_is_written_whatever_the_pace(tmp_path: Path) -> None:
    async def main() -> None:
        trained, kept = learner(), keeper(tmp_path)
        model = OwnModel(kept, PART, steps=3, unix_s=lambda: 1e9)
        for _ in range(3):
            trained.train_batch()
            await model.offer(trained, 0, COMPUTE)
        assert [c.manifest.version for c in await kept.scan()] == [3]

    trio.run(main)
