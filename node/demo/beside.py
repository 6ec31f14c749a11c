"""A process beside the demo that trains and tests for comparison: this one imports no torch.

It prints one JSON object per line: how far it is, and at last its result.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from node.errors import NodeError

_PASSIVE: Final = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other must sleep, not spin: on a machine with anything else to do, torch on two threads
that spin is eight times slower."""


def messages_of(command: Sequence[str], log: Path) -> Iterator[dict[str, Any]]:
    """Run it, and yield what it prints.

    Args:
      log: takes what the process writes on stderr.
    Raises:
      NodeError: it did not end by itself, in good order.
    """
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **_PASSIVE},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            process.terminate()
    if code:
        lines = log.read_text("utf-8", "replace").splitlines()[-20:]
        raise NodeError(
            f"the process that trains for comparison ended with exit code {code}; its log ends:",
            "\n  ".join(lines),
        )
