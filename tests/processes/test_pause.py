"""A volunteer takes the machine back for a while, and gives it again."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.limits import usage_of
from node.local import MURMURA
from tests.node.processes import Daemon, daemons, environment
from tests.processes.swarm import write_run_file

pytestmark = pytest.mark.process

FLAGS = ("--threads", "1", "--nice", "0", "--checkpoint-every-s", "0.2")


@pytest.mark.soak
def test_a_paused_node_frees_its_memory_stays_paused_over_a_restart_and_goes_on_when_resumed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pause")
    flags = ("--run", str(write_run_file(folder, replicas=1, stages=1)), *FLAGS)
    with daemons() as started:
        node = Daemon(folder / "node", *flags)
        started.append(node)
        node.wait_ready()
        peer = node.wait_until(lambda s: s["services"].get("pipeline", {}).get("step"))
        pid, before_mb = node.process.pid, usage_of(node.process.pid).memory_bytes >> 20
        assert "paused after" in node.command("pause").stdout
        status = node.ask("status")
        assert (status["life"]["state"], status["healthy"]) == ("paused", True)
        assert status["node"]["peer_id"] == peer["node"]["peer_id"]
        assert status["node"]["pid"] == pid, "a supervisor still watches the same process"
        assert "pipeline" not in status["services"]
        assert usage_of(pid).memory_bytes >> 20 < before_mb - 50
        assert node.end(signal.SIGTERM) == 0
        again = Daemon(folder / "node", *flags)
        started.append(again)
        again.wait_ready()
        again.wait_until(lambda s: s["life"]["state"] == "paused")
        assert again.command("resume").stdout == "resumed\n"
        step = peer["services"]["pipeline"]["step"]
        again.wait_until(lambda s: (s["services"].get("pipeline", {}).get("step") or 0) > step)
        assert again.ask("status")["life"]["state"] == "serving"
        assert again.end(signal.SIGTERM) == 0


@pytest.mark.soak
def test_the_last_holder_of_a_stage_says_so_and_pauses_once_another_has_taken_over(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("last")
    run_file = write_run_file(folder, replicas=1, stages=2)
    with daemons() as started:
        first = start(started, folder / "n0", "--run", str(run_file))
        join = ("--join", first.ask("invite")["invite"], "--data", str(folder / "text"))
        holder = start(started, folder / "n1", *join)
        for node in (first, holder):
            node.wait_until(lambda s: s["services"].get("pipeline", {}).get("synced"))
        first.wait_until(lambda s: s["services"]["pipeline"]["step"])
        alone_at = pipeline_of(holder)["stage"]

        with pausing(holder) as command:
            assert f"nobody else holds the state of stage {alone_at}" in line_of(command)
            assert command.poll() is None
            assert holder.ask("status")["life"]["state"] == "draining"
            assert pipeline_of(first)["members_by_stage"] == [1, 1], "it is still there"
            third = start(started, folder / "n2", *join)
            output, _ = command.communicate(timeout=90)
            assert (command.returncode, "paused after" in output) == (0, True)

        assert pipeline_of(third)["stage"] == alone_at
        step = pipeline_of(first)["step"]
        first.wait_until(lambda s: s["services"]["pipeline"]["step"] > step + 3)
        assert pipeline_of(first)["members_by_stage"] == [1, 1]
        assert holder.ask("status")["life"]["state"] == "paused"


@pytest.mark.soak
def test_the_last_holder_of_a_stage_of_a_run_that_is_over_has_it_still_when_it_is_back(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("over")
    run_file = write_run_file(folder, replicas=1, stages=2, steps=8)
    with daemons() as started:
        first = start(started, folder / "n0", "--run", str(run_file))
        join = ("--join", first.ask("invite")["invite"], "--data", str(folder / "text"))
        holder = start(started, folder / "n1", *join, "--drain-s", "2")
        for node in (first, holder):
            node.wait_until(lambda s: s["services"].get("pipeline", {}).get("step") == 8)
        alone_at = pipeline_of(holder)["stage"]
        assert holder.end(signal.SIGTERM) == 0
        again = start(started, folder / "n1", *join)
        again.wait_until(lambda s: s["services"].get("pipeline", {}).get("synced"))
        again.wait_until(lambda s: s["life"]["state"] == "serving")
        assert (pipeline_of(again)["stage"], pipeline_of(again)["step"]) == (alone_at, 8)
        model = tmp_path / "model.safetensors"
        exported = first.command("export", str(model))
        assert exported.returncode == 0, exported.stderr


def start(started: list[Daemon], folder: Path, *flags: str) -> Daemon:
    node = Daemon(folder, *flags, *FLAGS)
    started.append(node)
    node.wait_ready()
    return node


def pipeline_of(node: Daemon) -> dict[str, Any]:
    section: dict[str, Any] = node.ask("status")["services"]["pipeline"]
    return section


@contextmanager
def pausing(node: Daemon) -> Iterator[subprocess.Popen[str]]:
    """Run `murmura pause`, which says on standard error what it waits for."""
    state_dir = node.paths.state_dir
    process = subprocess.Popen(
        [*MURMURA, "pause", "--state-dir", str(state_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(state_dir),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return what it says, up to the first line about the state that it holds; a killed process ends that."""
    assert process.stderr is not None
    giving_up = threading.Timer(30.0, process.kill)
    giving_up.start()
    try:
        said = ""
        for line in process.stderr:
            said += line
            if "nobody else holds" in line:
                break
        return said
    finally:
        giving_up.cancel()
