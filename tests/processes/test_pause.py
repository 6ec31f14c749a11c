"""A volunteer takes the machine back for a while, and gives it again."""

from __future__ import annotations

import signal

import pytest

from node.limits import usage_of
from tests.node.processes import Daemon, daemons
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
def test_the_last_holder_of_a_stage_hands_it_over_before_it_pauses(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("last")
    run_file = write_run_file(folder, replicas=1, stages=2)
    with daemons() as started:
        first = Daemon(folder / "n0", "--run", str(run_file), *FLAGS)
        started.append(first)
        first.wait_ready()
        invite = first.ask("invite")["invite"]
        for number in (1, 2):
            node = Daemon(
                folder / f"n{number}", "--join", invite, "--data", str(folder / "text"), *FLAGS
            )
            started.append(node)
            node.wait_ready()
        first.wait_until(
            lambda s: sum(s["services"].get("pipeline", {}).get("members_by_stage", [0])) == 3
        )
        for node in started:
            node.wait_until(lambda s: s["services"].get("pipeline", {}).get("synced"))
        at = first.ask("status")["services"]["pipeline"]["members_by_stage"]
        alone = at.index(1)
        holder = next(
            node for node in started if node.ask("status")["services"]["pipeline"]["stage"] == alone
        )
        paused = holder.command("pause")
        assert "paused after" in paused.stdout, paused.stderr
        other = next(node for node in started if node is not holder)
        step = other.ask("status")["services"]["pipeline"]["step"]
        other.wait_until(lambda s: s["services"]["pipeline"]["step"] > step + 3)
        assert other.ask("status")["services"]["pipeline"]["members_by_stage"] == [1, 1]
