"""Worker processes of a benchmark: one JSON line in, one JSON line out, so that each side is a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from node.limits import processor as processor  # beside the figures of every benchmark

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Worker:
    """A child process running `python -m MODULE ARG...`, asked one question at a time. Use as a context manager."""

    def __init__(self, module: str, *args: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello = self._read()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send one question and wait for its answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return self._read()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a benchmark worker ended with code {self._child.wait()}; see its messages above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()  # the worker ends when its input does
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def answer_line(answer: Mapping[str, Any]) -> None:
    """Write one answer, in a worker."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def family_of(pid: int) -> list[int]:
    """Return a process and all that it started, and they."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                stat = (entry / "stat").read_bytes()
                parent = int(stat.rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    family, todo = [], [pid]
    while todo:
        family.append(todo.pop())
        todo += children.get(family[-1], [])
    return family


def cpu_seconds_of(pid: int) -> float:
    """Return user and system seconds of a process so far, in steps of 10 ms."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
