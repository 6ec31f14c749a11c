"""The status is an interface: its keys, their types and their units do not change by accident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from node.status import SCHEMA_VERSION, build_status
from tests.node.cli.samples import STATUS
from tests.node.nodes import invite_of, open_world

pytestmark = pytest.mark.trio

GOLDEN = Path(__file__).with_name("golden") / "status_keys.json"


def status_of_a_joined_node(folder: Path) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with open_world(folder) as world:
            first = await world.node(run=world.run_file())
            joiner = await world.node(join=invite_of(first))
            await joiner.run_known.wait()
            joiner.life.has_state("test", "nothing to fetch")
            await trio.sleep(90)
            return build_status(joiner, now_unix_s=1_000_000.0)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def shape(data: Any) -> Any:
    """Reduce values to their types, keep keys; a list is described by its first item."""
    if isinstance(data, dict):
        return {key: shape(value) for key, value in data.items()}
    if isinstance(data, list):
        return [shape(data[0])] if data else []
    return type(data).__name__


def test_the_keys_of_the_status_are_the_golden_ones(tmp_path: Path) -> None:
    """Adding a key: add it to the golden file. Renaming or removing one: raise SCHEMA_VERSION as well, and say so."""
    found = shape(status_of_a_joined_node(tmp_path))
    assert found == json.loads(GOLDEN.read_text())
    assert SCHEMA_VERSION == 1


def test_the_status_is_plain_data(tmp_path: Path) -> None:
    status = status_of_a_joined_node(tmp_path)
    assert msgpack.unpackb(msgpack.packb(status)) == status
    assert json.loads(json.dumps(status)) == status


def test_a_node_that_serves_is_healthy(tmp_path: Path) -> None:
    status = status_of_a_joined_node(tmp_path)
    assert status["healthy"]
    assert status["life"]["state"] == "serving"
    assert status["network"]["peers"] == 1
    assert status["network"]["clock_skew_seconds"] == pytest.approx(0, abs=0.1)


def test_the_sample_that_the_command_line_is_tested_with_has_the_same_keys(tmp_path: Path) -> None:
    status = status_of_a_joined_node(tmp_path)
    assert STATUS.keys() == status.keys()
    for section in ("node", "life", "run", "network", "resources", "limits"):
        assert STATUS[section].keys() == status[section].keys()
