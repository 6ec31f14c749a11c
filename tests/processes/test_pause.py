"""A volunteer takes the machine back for a while, and gives it again."""

from __future__ import annotations

import signal

import pytest

from node.limits import usage_of
from tests.node.processes import Daemon, daemons
from tests.processes.swarm import write_run_file

pytestmark = pytest.mark.process

FLAGS = ("--threads", "1", "--nice", "0", "--checkpoint-every-s", "0.2")


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
