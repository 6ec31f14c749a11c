"""The daemon as a volunteer meets it: real processes, real sockets, loopback only."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import exit_codes
from tests.node.processes import Daemon, daemons, murmura, write_run_file

pytestmark = pytest.mark.process


@pytest.fixture
def started() -> Iterator[list[Daemon]]:
    with daemons() as collected:
        yield collected


def start(started: list[Daemon], folder: Path, name: str, *flags: str) -> Daemon:
    if not flags:
        flags = ("--run", str(write_run_file(folder)))
    daemon = Daemon(folder / name, *flags)
    started.append(daemon)
    return daemon


def test_two_commands_make_a_swarm_and_sigterm_ends_it_in_good_order(
    tmp_path: Path, started: list[Daemon]
) -> None:
    """The life of a volunteer: start, hand on the invite, join, ask, leave."""
    first = start(started, tmp_path, "first")
    first.wait_ready()
    assert first.out.read_text().startswith("murmura run --join murmura1")
    invite = first.command("invite").stdout.strip()
    joiner = start(started, tmp_path, "joiner", "--join", invite)
    joiner.wait_ready()
    status = joiner.wait_until(lambda s: s["network"]["peers"] == 1 and s["run"]["name"])
    assert status["run"] == first.json("status")["run"]
    assert [peer["peer_id"] for peer in joiner.json("peers")["peers"]] == [
        first.json("id")["peer_id"]
    ]
    stranger = murmura(
        "status", "--peer", first.json("id")["addresses"][0], "--json", home=tmp_path
    )
    assert json.loads(stranger.stdout)["run"] == status["run"]["run_id"]
    socket_mode = (joiner.paths.socket).stat().st_mode
    assert stat.S_IMODE(socket_mode) == 0o600

    began_s = time.monotonic()
    assert joiner.stop() == exit_codes.OK
    assert first.command("drain").returncode == exit_codes.OK
    assert first.process.wait(60) == exit_codes.OK
    assert time.monotonic() - began_s < 25
    assert first.command("status").returncode == exit_codes.NOT_RUNNING


def test_sigkill_leaves_no_child_and_the_same_place_can_be_taken_at_once(
    tmp_path: Path, started: list[Daemon]
) -> None:
    first = start(started, tmp_path, "node")
    first.wait_ready()
    first.wait_until(lambda s: s["services"]["directory"]["pid"])
    assert len(first.family()) >= 3
    first.kill()
    assert first.left_behind() == set()
    again = start(started, tmp_path, "node")
    again.wait_ready()
    assert again.json("status")["node"]["peer_id"]


def test_a_second_signal_leaves_without_draining(tmp_path: Path, started: list[Daemon]) -> None:
    daemon = start(started, tmp_path, "node")
    daemon.wait_ready()
    daemon.family()
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(25) == exit_codes.OK


IN_A_GROUP_OF_ITS_OWN = (
    *(sys.executable, "-P", "-c"),
    "import os; os.setpgid(0, 0); from node.cli import main; main()",
)
"""`murmura`, started as a shell or `timeout` starts a program."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_the_transport_until_the_node_has_drained(
    tmp_path: Path, started: list[Daemon], number: signal.Signals
) -> None:
    """Ctrl-C at a terminal, `timeout 60 murmura run`, and a terminal that is closed."""
    run_file = str(write_run_file(tmp_path))
    daemon = Daemon(tmp_path / "node", "--run", run_file, command=IN_A_GROUP_OF_ITS_OWN)
    started.append(daemon)
    daemon.wait_ready()
    daemon.wait_until(lambda s: s["services"]["directory"]["pid"])
    children = daemon.family() - {daemon.process.pid}
    assert len(children) >= 2
    assert all(os.getpgid(child) != daemon.process.pid for child in children)
    os.killpg(daemon.process.pid, number)
    assert daemon.process.wait(30) == exit_codes.OK
    assert daemon.left_behind() == set()
    log = daemon.log.read_text()
    assert "drained: " in log
    assert "starting it again" not in log
    assert "service failed" not in log


def test_nohup_keeps_a_node_when_its_terminal_is_closed(
    tmp_path: Path, started: list[Daemon]
) -> None:
    *python, program = IN_A_GROUP_OF_ITS_OWN
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    run_file = str(write_run_file(tmp_path))
    daemon = Daemon(tmp_path / "node", "--run", run_file, command=(*python, ignore + program))
    started.append(daemon)
    daemon.wait_ready()
    os.killpg(daemon.process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert daemon.process.poll() is None
    assert daemon.json("status")["life"]["state"] != "draining"
    assert daemon.stop() == exit_codes.OK


def test_a_stage_that_the_run_does_not_have_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    done = run_until_it_ends(tmp_path, "--stage", "7")
    assert done.returncode == exit_codes.CONFIG
    assert "stage must be 0 to 2, not 7" in done.stderr
    assert not (tmp_path / "node" / "identity.key").exists()


def test_an_unreachable_bootstrap_does_not_keep_a_node_from_being_ready(
    tmp_path: Path, started: list[Daemon]
) -> None:
    peer = "12D3KooWBXu3uGPMkjjxViK6autSnFH5QaKJgTwW8CaSxYSD6yYL"
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer}"
    run_file = str(write_run_file(tmp_path))
    daemon = start(started, tmp_path, "node", "--run", run_file, "--bootstrap", address)
    daemon.wait_ready()
    status = daemon.wait_until(lambda s: s["services"]["joining"]["dialled"])
    (dialled,) = status["services"]["joining"]["dialled"]
    assert dialled["address"] == address
    assert not dialled["ok"]
    # p2pd says why it failed, or that it failed so lately that it waits before it dials again.
    assert "refused" in dialled["reason"] or "backoff" in dialled["reason"]
    assert status["life"]["state"] == "joining"
    assert daemon.stop() == exit_codes.OK


def test_asking_a_node_that_is_not_there_exits_69_and_says_so(tmp_path: Path) -> None:
    peer = "12D3KooWBXu3uGPMkjjxViK6autSnFH5QaKJgTwW8CaSxYSD6yYL"
    done = murmura("status", "--peer", f"/ip4/127.0.0.1/tcp/9/p2p/{peer}", home=tmp_path)
    assert done.returncode == exit_codes.UNAVAILABLE
    assert "nobody answers" in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_is_said_and_may_be_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_until_it_ends(tmp_path, "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert done.returncode == exit_codes.TRY_AGAIN
    assert str(port) in done.stderr
    assert "--listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_daemon_in_the_same_place_is_refused(
    tmp_path: Path, started: list[Daemon]
) -> None:
    daemon = start(started, tmp_path, "node")
    daemon.wait_ready()
    done = daemon.command("run", "--run", str(write_run_file(tmp_path)))
    assert done.returncode == exit_codes.TRY_AGAIN
    assert f"process {daemon.process.pid}" in done.stderr
    assert daemon.json("status")["node"]["pid"] == daemon.process.pid  # undisturbed


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    run_file = str(write_run_file(tmp_path))
    # Not even root can make a folder there, so the test means the same in a container.
    done = murmura("run", "--run", run_file, "--state-dir", "/proc/murmura", home=tmp_path)
    assert done.returncode == exit_codes.NO_PERMISSION
    assert "/proc/murmura" in done.stderr
    assert "--state-dir" in done.stderr


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    identity = tmp_path / "node" / "identity.key"
    identity.write_bytes(b"key")
    identity.chmod(0o644)
    done = run_until_it_ends(tmp_path)
    assert done.returncode == exit_codes.NO_PERMISSION
    assert "chmod 600" in done.stderr


def run_until_it_ends(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    run_file = str(write_run_file(folder))
    listen = () if "--listen" in flags else ("--listen", "/ip4/127.0.0.1/tcp/0")
    state_dir = ("--state-dir", str(folder / "node"))
    return murmura("run", "--run", run_file, *state_dir, *listen, *flags, home=folder)
