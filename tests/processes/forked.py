"""Real daemons that start in milliseconds: forked from one process in which torch and the node are loaded already.

What runs is the program a volunteer runs, in a process of its own, with its own p2pd and dht process. Only the import
of torch, two seconds of a core for every node, is done once for all of them. `test_daemon_process` starts `murmura`
itself and keeps the difference honest.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Final

from tests.node.processes import Daemon

_LOADED_BEFORE: Final = [
    "node.cli.commands.run",
    "node.daemon",
    "node.training",
    "swarm.gossip.mode",
    "swarm.pipeline.mode",
    "tests.processes.points",
]


class ForkedDaemon(Daemon):
    """A daemon that can be told to die at a point of a step; see tests.processes.points."""

    @property
    def witness(self) -> Path:
        """Folder beside the node's own for what it is told, and what it writes down, for the tests."""
        return self.paths.state_dir.with_name(f"{self.paths.state_dir.name}.witness")

    def _spawn(self, arguments: Sequence[str], environ: Mapping[str, str]) -> Forked:
        self.witness.mkdir(exist_ok=True)
        files = str(self.out), str(self.log), str(self.witness)
        return Forked(_be_a_node, (list(arguments), dict(environ), *files))


class Forked:
    """A forked process, with what tests use of subprocess.Popen."""

    def __init__(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self._process: ForkServerProcess = _server().Process(
            target=work, args=arguments, daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(f"forked {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _server() -> ForkServerContext:
    """Return what forks. It loads at the first use and ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED_BEFORE)
    return context


def _be_a_node(
    arguments: list[str], environ: dict[str, str], out: str, log: str, witness: str
) -> None:
    """Become `murmura` with these arguments. Runs in the new process."""
    os.environ.clear()
    os.environ.update(environ)
    for path, flags, descriptor in (
        (os.devnull, os.O_RDONLY, 0),
        (out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["murmura", *arguments]
    from node.cli import main
    from tests.processes.points import install

    install(Path(witness))
    main()
