"""The peers of one side: worker processes that are asked all at once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from benchmarks.averaging.cases import Case
from benchmarks.workers import Worker, cpu_seconds_of, family_of


class Side(Protocol):
    """All peers of one case, ours or hivemind's."""

    workers: list[Worker]

    def replace(self, index: int) -> None:
        """Put a new peer in the place of one that was killed."""
        ...


class Ours:
    """Peers of ours, each with a p2pd of its own; each is told of all the others."""

    def __init__(
        self, stack: contextlib.ExitStack, case: Case, codec: str, *, group: int | None = None
    ) -> None:
        self._stack = stack
        self._options = {"codec": codec, "group": group or case.peers}
        with ThreadPoolExecutor(case.peers) as pool:
            self.workers = list(pool.map(lambda _: self._open(), range(case.peers)))
        self._meet()

    def _open(self) -> Worker:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mu")))
        module = "benchmarks.averaging.ours"
        return self._stack.enter_context(Worker(module, str(folder), json.dumps(self._options)))

    def _meet(self) -> None:
        hellos = [worker.hello for worker in self.workers]
        for index, worker in enumerate(self.workers):
            others = [hello for number, hello in enumerate(hellos) if number != index]
            worker.ask(
                do="meet",
                addresses=[hello["address"] for hello in others],
                peers=[hello["peer"] for hello in others],
            )

    def replace(self, index: int) -> None:
        self.workers[index] = self._open()
        self._meet()


class Hivemind:
    """Averagers of hivemind's, each with a DHT of its own."""

    def __init__(
        self, stack: contextlib.ExitStack, case: Case, codec: str, *, group: int | None = None
    ) -> None:
        self._stack = stack
        self._options: dict[str, Any] = {
            "codec": codec,
            "group": group or case.peers,
            "elements": case.elements,
            "initial_peers": [],
        }
        self.workers = [self._open()]
        self._options["initial_peers"] = [self.workers[0].hello["address"]]
        with ThreadPoolExecutor(case.peers) as pool:
            self.workers += pool.map(lambda _: self._open(), range(case.peers - 1))

    def _open(self) -> Worker:
        module = "benchmarks.averaging.theirs"
        return self._stack.enter_context(Worker(module, json.dumps(self._options)))

    def replace(self, index: int) -> None:
        alive = self.workers[(index + 1) % len(self.workers)]
        self._options["initial_peers"] = [alive.hello["address"]]
        self.workers[index] = self._open()


def ask_all(workers: Sequence[Worker], **question: Any) -> list[dict[str, Any]]:
    """Ask all workers at once; one that is killed meanwhile answers {"killed": True}."""

    def ask(numbered: tuple[int, Worker]) -> dict[str, Any]:
        peer, worker = numbered
        try:
            return worker.ask(peer=peer, **question)
        except (RuntimeError, OSError):
            return {"killed": True}

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(ask, enumerate(workers)))


def measure(
    side: Side, case: Case, rounds: int, *, error_max: float, warm: int = 2
) -> dict[str, Any]:
    """Average so many rounds; return the median of what the slowest peer took, and how many rounds failed.

    Args:
      error_max: a mean that is off by more is none, whatever the side says.
    """
    seconds, errors, cpu_seconds, failures = [], [], [], []
    for version in range(1, warm + rounds + 1):
        ask_all(side.workers, do="prepare", version=version, elements=case.elements)
        before_s = _cpu_seconds(side)
        answers = ask_all(side.workers, do="average", version=version)
        used_s = _cpu_seconds(side) - before_s
        checked = [answer.get("error", math.inf) for answer in answers]
        whole = all(answer.get("members") == case.peers for answer in answers)
        if version <= warm:
            continue
        if whole and all(error <= error_max for error in checked):  # NaN is not
            seconds.append(max(answer["seconds"] for answer in answers))
            errors.append(max(checked))
            cpu_seconds.append(used_s)
        else:
            failures.append(answers)
    return {
        "seconds": round(statistics.median(seconds), 3) if seconds else None,
        "slowest": round(max(seconds), 3) if seconds else None,
        "cpu_seconds": round(statistics.fmean(cpu_seconds), 2) if seconds else None,
        "rounds_failed": len(failures),
        "error": max(errors, default=None),
        "failures": failures,
    }


def _cpu_seconds(side: Side) -> float:
    """Return what all processes of a side have computed so far: it hardly depends on who else uses the machine."""
    return sum(cpu_seconds_of(pid) for worker in side.workers for pid in family_of(worker.pid))


def kill(worker: Worker) -> None:
    """Kill a peer and all that it has started."""
    for pid in family_of(worker.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
