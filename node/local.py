"""Nodes on this machine as child processes, started through the command a volunteer uses.

For the demo, the benchmarks and the tests: whoever starts several nodes here watches them the way systemd would
(READY=1 on a notification socket), asks them over their control sockets, and ends them by pid.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from node.control.client import ControlClient
from node.errors import NodeError
from node.limits import family
from node.paths import Paths

MURMURA: Final = (sys.executable, "-P", "-m", "node.cli")
"""`murmura`, in whatever way this interpreter was started. -P: the current folder is not searched for modules."""
LOOPBACK: Final = ("--listen", "/ip4/127.0.0.1/tcp/0")
READY_S: Final = 60.0
"""A loaded machine may take long; a daemon that ends instead is noticed at once."""
ASK_S: Final = 30.0
"""Several nodes that import torch at once on a small machine may each be late by seconds; people are not so patient."""
_POLL_S: Final = 0.05


class Process(Protocol):
    """What is used of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class LocalNode:
    """One `murmura run`. As a context manager it is killed, with its children, when the block ends.

    Args:
      state_dir: made when missing; log and standard output go there too.
      flags: of `murmura run`; loopback is added unless `--listen` is among them.
      environ: None passes ours on.
      command: something that takes the arguments of `murmura`.
    """

    def __init__(
        self,
        state_dir: Path,
        *flags: str,
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = MURMURA,
    ) -> None:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths = Paths(state_dir, state_dir / "run")
        self.log = state_dir / "log"
        self.out = state_dir / "out"
        self.started_s = time.monotonic()
        self._command = command
        self._pids: set[int] = set()
        self._notify = _notification_socket(state_dir / "notify")
        listen = () if "--listen" in flags else LOOPBACK
        arguments = ("run", "--state-dir", str(state_dir), *listen, *flags)
        environ = {**(os.environ if environ is None else environ)}
        environ["NOTIFY_SOCKET"] = str(state_dir / "notify")
        self.process: Process = self._spawn(arguments, environ)

    def _spawn(self, arguments: Sequence[str], environ: Mapping[str, str]) -> Process:
        """Start the program with standard output in `out` and its log in `log`, to which it is added."""
        with self.log.open("ab") as log, self.out.open("wb") as out:
            return subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environ,
            )

    def wait_ready(self, timeout_s: float = READY_S) -> float:
        """Return the seconds from start to READY. Raises NodeError, with the log's end, when it does not come."""
        deadline_s = self.started_s + timeout_s
        while time.monotonic() < deadline_s:
            self._notify.settimeout(_POLL_S)
            try:
                if b"READY=1" in self._notify.recv(4096).split(b"\n"):
                    return time.monotonic() - self.started_s
            except TimeoutError:
                pass
            if self.process.poll() is not None:
                raise NodeError(
                    f"the node ended with exit code {self.process.returncode}", self.tail()
                )
        raise NodeError(f"the node was not ready after {timeout_s:g} s", self.tail())

    def ask(self, method: str, *, timeout_s: float = ASK_S, **params: Any) -> Any:
        """Ask over the control socket. Raises NodeError."""
        with ControlClient(self.paths.socket, timeout_s=timeout_s) as client:
            return client.call(method, timeout_s=timeout_s, **params)

    def wait_until(
        self, wanted: Callable[[dict[str, Any]], Any], timeout_s: float = READY_S
    ) -> dict[str, Any]:
        """Ask for the status until `wanted(status)`, and return that status. Raises NodeError."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            status: dict[str, Any] = self.ask("status")
            if wanted(status):
                return status
            time.sleep(2 * _POLL_S)
        raise NodeError(f"the node was not as wanted after {timeout_s:g} s", self.tail())

    def family(self) -> set[int]:
        """Return the pids of the daemon and its children now, and remember them for `left_behind`."""
        living = set(family(self.process.pid)) if self.process.poll() is None else set()
        self._pids |= living
        return living

    def stop(self, timeout_s: float = 30.0) -> int:
        """Drain by SIGTERM and return the exit code."""
        return self.end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """End it as a power cut would."""
        return self.end(signal.SIGKILL, 10.0)

    def end(self, number: signal.Signals, timeout_s: float = 30.0) -> int:
        """Send a signal, wait, and return the exit code."""
        self.family()
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def left_behind(self, timeout_s: float = 10.0) -> set[int]:
        """Return processes of a node that has ended which are still there after so long; none, if all is well."""
        deadline_s = time.monotonic() + timeout_s
        while living := {pid for pid in self._pids if _is_alive(pid)}:
            if time.monotonic() > deadline_s:
                return living
            time.sleep(_POLL_S)
        return set()

    def tail(self, lines: int = 20) -> str:
        """Return the end of its log, for error messages."""
        return "\n  ".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def close(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.kill()
        self._notify.close()

    def __enter__(self) -> LocalNode:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def stop_all(nodes: Iterable[LocalNode], timeout_s: float = 30.0) -> dict[LocalNode, int]:
    """Drain them all at once and return their exit codes."""
    nodes = list(nodes)
    for node in nodes:
        node.family()
        node.process.send_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    return {node: node.process.wait(max(0.1, deadline_s - time.monotonic())) for node in nodes}


def _notification_socket(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(path))
    return notify


def _is_alive(pid: int) -> bool:
    """A zombie, whose parent has not looked yet, is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
