"""A swarm that goes on from another run's checkpoint, of which only some nodes have files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import trio

from protocols.run.pipeline import pipeline_of
from tests.fakes.host import MemoryNetwork
from tests.swarm.pipeline.small_swarm import SmallSwarm, small_run
from tests.swarm.pipeline.test_start import new_run, old_run, trained, write_old


def test_a_prolonged_run_counts_on_in_another_split_and_fetches_what_is_not_here(
    tmp_path: Path,
) -> None:
    start = write_old(tmp_path / "first", 0, 1)
    write_old(tmp_path / "second", 2)
    run = dataclasses.replace(
        new_run(start, steps=8, microbatches=6), deadlines=small_run().deadlines
    )
    before = {
        name: tensor
        for stage in range(3)
        for name, tensor in trained(old_run(), stage).parameters().items()
    }

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            swarm = SmallSwarm(run, MemoryNetwork(nursery), nursery)
            for name in ("first", "second", "third"):
                swarm.start_folders.append(tmp_path / name / str(run.run_id))
            first = await swarm.node(train=False)
            second = await swarm.node(train=False)
            await swarm.until(
                lambda: all(node.peer.state.complete is not None for node in (first, second))
            )
            begun = swarm.parameters()
            assert begun.keys() == before.keys()
            assert all(torch.equal(begun[name], before[name]) for name in before)
            assert swarm.step == start.step
            assert list((tmp_path / "first").glob("*/start/stage+2/*.safetensors"))
            await swarm.node()
            await swarm.finished()
            steps = [r.step for r in swarm.records.values() if r.commits_step]
            assert sorted(steps) == list(range(start.step + 1, pipeline_of(run).steps + 1))
            nursery.cancel_scope.cancel()

    trio.run(main)
