"""Training as a service of a node, on the in-memory network: what a person is told about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from node.errors import ConfigError, NodeError
from node.node import Node
from node.training import TrainingService, build_services
from tests.node.nodes import invite_of, open_world
from tests.node.runs import write_right_run

pytestmark = pytest.mark.trio


async def until(
    service: TrainingService, wanted: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    with trio.fail_after(60):
        while not wanted(status := service.status()):  # noqa: ASYNC110 - as a person does
            await trio.sleep(0.02)
    return status


async def start(node: Node, nursery: trio.Nursery) -> TrainingService:
    (service,) = build_services(node)
    assert isinstance(service, TrainingService)
    nursery.start_soon(node.services.keep_running, service)
    return service


def test_a_run_that_is_over_says_so_once_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "swarm.pipeline.mode")

    async def main() -> None:
        async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
            run_file = write_right_run(tmp_path, stages=1, steps=2)
            service = await start(await world.node(run=str(run_file), threads=1, nice=0), nursery)
            status = await until(service, lambda status: status["step"] == 2)
            assert status["waiting_for"] == (
                "nothing: the run is complete; `murmura export PATH` writes the model"
            )
            await trio.sleep(1.0)  # heartbeats go on
            with pytest.raises(NodeError) as refused:
                await service.export(tmp_path / "nodir" / "x.st", {})
            assert refused.value.reason == (
                f"cannot write {tmp_path}/nodir/x.st: No such file or directory"
            )
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert [line for line in caplog.messages if "complete" in line] == [
        "the run is complete: steps=2, `murmura export PATH` writes it"
    ]


def test_a_node_that_leaves_with_the_only_copy_of_a_stage_says_that_it_is_asked_to_stay(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
            run_file = write_right_run(tmp_path, stages=2, steps=1000)
            first = await world.node(run=str(run_file), threads=1, nice=0)
            await start(first, nursery)
            text = str(tmp_path / "text.txt")
            second = await world.node(join=invite_of(first), data=text, threads=1, nice=0)
            await second.run_known.wait()
            leaver = await start(second, nursery)
            status = await until(leaver, lambda status: status["step"])
            assert not status["asked_to_stay"]
            nursery.start_soon(leaver.drain, 30.0)
            status = await until(leaver, lambda status: status["asked_to_stay"])
            assert status["member"]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_one_who_joins_learns_that_there_is_no_such_stage_and_hosts_none(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            first = await world.node(run=str(write_right_run(tmp_path, stages=2)))
            joiner = await world.node(join=invite_of(first), stage=7)
            await joiner.run_known.wait()
            (service,) = build_services(joiner)
            with pytest.raises(ConfigError, match="stage must be 0 to 1, not 7"):
                await service.run()
            assert "stage" not in service.status()

    trio.run(main)
