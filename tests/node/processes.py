"""Real daemons for tests: node.local's, with an empty home and what tests ask of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.local import MURMURA, LocalNode
from tests.node.nodes import RUN_TOML

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""Tests share two cores with whatever else runs; nothing waits this long unless it is broken."""


class Daemon(LocalNode):
    """One `murmura run`, and the commands of a person beside it."""

    def __init__(self, state_dir: Path, *flags: str, command: Sequence[str] = MURMURA) -> None:
        super().__init__(state_dir, *flags, environ=environment(state_dir), command=command)

    def json(self, *arguments: str) -> Any:
        """Run a read command with --json and return what it printed."""
        return json.loads(self.command(*arguments, "--json").stdout)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command against this daemon."""
        state_dir = self.paths.state_dir
        return murmura(*arguments, "--state-dir", str(state_dir), home=state_dir)


def environment(home: Path) -> dict[str, str]:
    """Return an empty home and nothing of the developer's settings."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}


def murmura(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*MURMURA, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(home),
        check=False,
    )


@contextmanager
def daemons() -> Iterator[list[Daemon]]:
    """Collect daemons; at the end none of them, nor a child of theirs, is left."""
    started: list[Daemon] = []
    try:
        yield started
    finally:
        for daemon in started:
            daemon.close()
        for daemon in started:
            assert daemon.left_behind() == set()


def write_run_file(folder: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(RUN_TOML)
    return path
