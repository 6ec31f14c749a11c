"""Real modes on the in-memory network: every metric that a mode declares is in its section of the status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from node.http.metrics import metric_names
from node.modes import MODES
from node.services import ServiceGroup
from node.training import build_services
from tests.node.nodes import World, invite_of, open_world
from tests.node.runs import write_right_run

NAMES = Path(__file__).parents[1] / "golden" / "metric_names.json"
SECTIONS = NAMES.with_name("section_keys.json")
GOSSIP_RUN = """
name = "g"
mode = "gossip"
[data]
kind = "digits"
partitions = 2
[model]
kind = "mlp"
layers = 2
width = 8
[optimizer]
kind = "sgd"
[training]
batch = 16
steps = 100000
evaluate_every = 5
"""
COLLECTIVE_RUN = GOSSIP_RUN.replace("gossip", "collective")


def test_the_names_of_metrics_are_the_golden_ones() -> None:
    """Adding one: add it to the golden file. Dashboards of others ask for these: none is renamed or removed."""
    assert sorted(metric_names()) == json.loads(NAMES.read_text())


async def section_of(world: World, run_file: str, mode: str) -> dict[str, Any]:
    """Train on two nodes until the first one's section has all that the mode declares."""
    wanted = {metric.key for metric in MODES[mode].metrics}
    first = await world.node(run=run_file, threads=1, nice=0)
    second = await world.node(join=invite_of(first), data=data_of(run_file), threads=1, nice=0)
    await second.run_known.wait()
    for node in (first, second):
        for service in build_services(node):
            world.nursery.start_soon(ServiceGroup.keep_running, node.services, service)
    while True:
        for member in first.services.members:
            section = member.service.status() if member.service.name == mode else {}
            if wanted <= section.keys():
                return section
        await trio.sleep(0.05)


def data_of(run_file: str) -> str:
    text = Path(run_file).with_name("text.txt")
    return str(text) if text.exists() else ""


@pytest.mark.trio
@pytest.mark.parametrize("mode", ["pipeline", "gossip", "collective"])
def test_what_a_mode_declares_is_in_its_status(mode: str, tmp_path: Path) -> None:
    async def main() -> dict[str, Any]:
        with trio.fail_after(60):
            async with open_world(tmp_path) as world:
                if mode == "pipeline":
                    run_file = str(write_right_run(tmp_path, stages=1, steps=10_000))
                else:
                    run_file = world.run_file(GOSSIP_RUN if mode == "gossip" else COLLECTIVE_RUN)
                found = await section_of(world, run_file, mode)
                world.nursery.cancel_scope.cancel()
                return found
        raise AssertionError("unreachable")

    section = trio.run(main)
    # Adding a key: add it to the golden file. Renaming or removing one: raise SCHEMA_VERSION, and say so.
    assert sorted(section) == json.loads(SECTIONS.read_text())[mode]
    for metric in MODES[mode].metrics:
        value = section[metric.key]
        values = value if isinstance(value, list) else [value]
        assert all(item is None or isinstance(item, int | float) for item in values), metric.key
