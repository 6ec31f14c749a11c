"""What the service manager hears."""

from __future__ import annotations

import os
import socket
from pathlib import Path

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


def test_without_a_manager_nothing_is_said(tmp_path: Path) -> None:
    Supervisor({}).ready()
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_the_journal_is_known_by_its_stream() -> None:
    info = os.fstat(2)
    assert stderr_is_journal({"JOURNAL_STREAM": f"{info.st_dev}:{info.st_ino}"})
    assert not stderr_is_journal({"JOURNAL_STREAM": "1:1"})
    assert not stderr_is_journal({})
