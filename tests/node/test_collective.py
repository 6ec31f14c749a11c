"""The mode `collective` in whole nodes on the in-memory network: it ends, is kept on disk, and goes on from there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from safetensors.torch import load_file

from node.node import Node
from node.runfile import read_run_file
from node.services import ServiceGroup
from node.training import TrainingService, build_services
from swarm.collective.info import OUTER
from swarm.state.checkpoint import FOLDER, scan
from swarm.state.start import whole_starts
from tests.node.nodes import World, invite_of, open_world

pytestmark = pytest.mark.trio

STEPS = 24
RUN = f"""
name = "c"
mode = "collective"
[data]
kind = "digits"
partitions = 2
[model]
kind = "mlp"
layers = 3
width = 16
[optimizer]
lr = 1e-2
warmup_steps = 0
[training]
batch = 16
steps = {STEPS}
[collective]
local_steps = 8
fragments = 2
outer_rate = 0.7
outer_momentum = 0.5
gather_ceiling_s = 3.0
"""
"""Three rounds of each fragment."""


async def train(world: World, node: Node) -> TrainingService:
    found: TrainingService | None = None
    for service in build_services(node):
        world.nursery.start_soon(ServiceGroup.keep_running, node.services, service)
        if isinstance(service, TrainingService):
            found = service
    assert found is not None
    return found


async def until(
    service: TrainingService, wanted: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    while not wanted(status := service.status()):  # noqa: ASYNC110 - as a person does
        await trio.sleep(0.02)
    return status


def finished(status: dict[str, Any]) -> bool:
    return bool(status.get("finished"))


def play(folder: Path, script: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_world(folder) as world:
                await script(world)
                world.nursery.cancel_scope.cancel()

    trio.run(main)


async def pair(world: World, run_file: Path) -> list[TrainingService]:
    first = await world.node("one", run=str(run_file), threads=1, nice=0)
    second = await world.node("two", join=invite_of(first), threads=1, nice=0)
    await second.run_known.wait()
    return [await train(world, first), await train(world, second)]


def test_two_nodes_end_with_one_model_which_is_kept_and_prolonged(tmp_path: Path) -> None:
    run_file, models = tmp_path / "first.toml", []
    run_file.write_text(RUN.replace("[collective]", "[collective]\npeers_to_start = 2"))
    run_id = read_run_file(run_file).run_id

    async def first_run(world: World) -> None:
        for index, service in enumerate(await pair(world, run_file)):
            status = await until(service, finished)
            assert status["step"] == STEPS
            assert status["group"] == 2
            assert status["waiting_for"].startswith("nothing")
            path = tmp_path / f"{index}.safetensors"
            await service.export(path, {})
            models.append(load_file(path))

    async def again(world: World) -> None:
        """Both lost power after the end: they are where they were."""
        for service in await pair(world, run_file):
            status = await until(service, finished)
            assert status["step"] == STEPS
            assert status["steps_trained"] == 0
            await service.export(tmp_path / "again.safetensors", {})
            assert same(load_file(tmp_path / "again.safetensors"), models[0])

    play(tmp_path, first_run)
    assert same(*models)
    play(tmp_path, again)

    folder = next(tmp_path.glob(f"one/**/{run_id}/{FOLDER}"))
    (start, *_) = whole_starts(run_id, scan(folder, run_id)[0], (OUTER,))
    assert start.step == STEPS
    longer = tmp_path / "longer.toml"
    longer.write_text(
        RUN.replace(f"steps = {STEPS}", f"steps = {STEPS + 10}").replace("fragments = 2", "fragments = 3")
        + f'[start]\nrun = "{start.run}"\nstep = {start.step}\nsha256 = "{start.sha256}"\n'
    )  # fmt: skip

    async def prolonged(world: World) -> None:
        for service in await pair(world, longer):
            status = await until(service, finished)
            assert status["step"] == STEPS + 10
            assert 1 <= status["steps_trained"] <= 10

    play(tmp_path, prolonged)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
