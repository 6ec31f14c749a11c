"""What the service manager hears."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from node.systemd import Supervisor, stderr_is_journal


def test_it_hears_that_we_are_ready_what_we_do_and_that_we_stop(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        supervisor = Supervisor({"NOTIFY_SOCKET": path})
        supervisor.ready()
        supervisor.status("serving, 3 peers")
        supervisor.stopping(20)
        supervisor.alive()
        heard = [manager.recv(4096).decode() for _ in range(4)]
    assert heard == [
        "READY=1",
        "STATUS=serving, 3 peers",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=25000000",
        "WATCHDOG=1",
    ]


def test_a_manager_that_does_not_listen_holds_nobody_up(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        supervisor = Supervisor({"NOTIFY_SOCKET": path})
        for _ in range(2000):  # more than any kernel queues
            supervisor.alive()
        manager.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(manager.recv(4096))
    assert 0 < len(heard) < 2000  # what did not fit was let go
    assert set(heard) == {b"WATCHDOG=1"}


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("opened a socket, with nobody to speak to")

    monkeypatch.setattr(socket, "socket", no_socket)
    Supervisor({}).ready()


def test_a_manager_that_is_gone_is_noted_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "systemd was not told"
    ]


def test_the_journal_is_known_by_its_stream() -> None:
    info = os.fstat(2)
    assert stderr_is_journal({"JOURNAL_STREAM": f"{info.st_dev}:{info.st_ino}"})
    assert not stderr_is_journal({"JOURNAL_STREAM": "1:1"})
    assert not stderr_is_journal({})
