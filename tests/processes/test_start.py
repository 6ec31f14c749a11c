"""A run that is over is prolonged by `[start]`: real nodes, another split of stages, and one that has no file of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from node.demo.scenarios.pipeline.accounts import audit
from node.local import stop_all
from protocols.run import StartSpec
from protocols.schema import decode
from tests.processes.forked import ForkedDaemon
from tests.processes.swarm import (
    MICROBATCHES,
    ProcessSwarm,
    process_swarm,
    write_run_file,
)

pytestmark = [pytest.mark.process, pytest.mark.soak]

STEPS, PROLONGED = 6, 10


def run_to_its_end(swarm: ProcessSwarm, *names: str) -> None:
    """Train all steps, and have everybody leave in good order, each with a last checkpoint."""
    for name in names:
        swarm.start(name, "--checkpoint-every-steps", "2")
    swarm.wait(lambda: all(swarm.step(node) == STEPS for node in swarm.living()))
    assert set(stop_all(swarm.living()).values()) == {0}


def start_of(first: ForkedDaemon, second: ForkedDaemon) -> StartSpec:
    """Return what `murmura checkpoints list` prints of two nodes' disks together."""
    listed = first.command("checkpoints", "list", "--also", str(second.paths.state_dir), "--json")
    (newest,) = json.loads(listed.stdout)["starts"][:1]
    return decode(StartSpec, newest)


def prolong(folder: Path, start: StartSpec) -> Path:
    """Write the same run with more steps, in one stage, that begins from a checkpoint of it."""
    path = write_run_file(folder, stages=1, replicas=3, steps=PROLONGED, dtype="float64")
    table = f'\n[start]\nrun = "{start.run}"\nstep = {start.step}\nsha256 = "{start.sha256}"\n'
    path.write_text(path.read_text() + table)
    return path


def serves(node: ForkedDaemon) -> bool:
    return bool(node.ask("status")["life"]["state"] == "serving")


def written(node: ForkedDaemon) -> int | None:
    """Return the step of the newest checkpoint."""
    version: int | None = node.ask("status")["services"]["checkpoints"]["version"]
    return version


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_is_over_has_its_last_step_on_the_disks_of_nodes_that_lose_power(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with process_swarm(tmp_path_factory.mktemp("start"), replicas=1, steps=STEPS) as swarm:
        for name in ("first", "second"):
            swarm.start(name)  # far fewer than `checkpoint_every_s` seconds: no other step is due
        swarm.wait(lambda: all(swarm.step(node) == STEPS for node in swarm.living()))
        swarm.wait(lambda: all(written(node) == STEPS for node in swarm.living()))
        first, second = swarm.living()
        for node in (first, second):
            node.kill()
        assert start_of(first, second).step == STEPS


def test_a_run_that_is_over_is_prolonged_in_another_split(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("start")
    with process_swarm(folder, replicas=1, steps=STEPS, dtype="float64") as swarm:
        run_to_its_end(swarm, "first", "second")
        ended = dict(swarm.nodes)
        start = start_of(ended["first"], ended["second"])
        assert start.step == STEPS
        before = tmp_path / "before.safetensors"
        also = str(ended["second"].paths.state_dir)
        ended["first"].command("checkpoints", "export", str(before), "--also", also)

        swarm.nodes.clear()
        swarm.run_file = prolong(folder, start)
        check = ended["first"].command("config", "check", str(swarm.run_file))
        assert "changed: training.steps: 6 -> 10" in check.stdout, check.stderr
        for name in ("first", "second", "without a file"):
            swarm.start(name, "--no-train")
        newcomer = swarm.nodes["without a file"]
        swarm.wait(lambda: all(serves(node) for node in swarm.living()))
        assert {swarm.step(node) for node in swarm.living()} == {STEPS}
        assert len(list(newcomer.paths.state_dir.glob("runs/*/start/*/*.safetensors"))) == 2
        after = tmp_path / "after.safetensors"
        assert newcomer.command("export", str(after)).returncode == 0
        assert same(load_file(before), load_file(after))

        trainer = swarm.start("trainer", "--no-host")
        swarm.wait(lambda: all(swarm.step(node) == PROLONGED for node in swarm.living()))
        assert newcomer.command("export", str(after)).returncode == 0
        assert not same(load_file(before), load_file(after))
        journals = [swarm.records(node) for node in (newcomer, trainer)]  # they know no other run
        expected = {s: range(MICROBATCHES) for s in range(STEPS + 1, PROLONGED + 1)}
        accounts = audit(journals, stages=1, expected=expected)
        assert (accounts.missing, accounts.repeated, accounts.problems) == (0, 0, ())
