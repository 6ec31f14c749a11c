"""Small swarms of real daemons on loopback: a tiny model, so that a step takes tens of milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.errors import NodeError
from protocols.ledger.view import Record, View, coverage_problem
from swarm.pipeline.journal import read_journal
from swarm.pipeline.text import read_text
from tests.node.processes import Daemon, daemons

TEXT_BYTES = 200_000
STAGES = 2
MICROBATCHES = 6
PATIENCE_S = 45.0

RUN_TOML = """\
name = "small"
[data]
pattern = "{text}"
sha256 = "{sha256}"
[model]
layers = 2
width = 16
heads = 2
context = 16
[pipeline]
stages = {stages}
microbatches = {microbatches}
sequences = 2
steps = 1000000
replicas_to_start = {replicas}
evaluate_every = 10
evaluation_microbatches = 2
[deadlines]
floor_s = 1.5
ceiling_s = 10.0
"""


def write_run_file(
    folder: Path, *, stages: int = STAGES, replicas: int = 2, microbatches: int = MICROBATCHES
) -> Path:
    """Write a text and a run that trains on it."""
    text = folder / "text"
    text.write_bytes(b"one peer tells another what it has counted\n" * (TEXT_BYTES // 43))
    path = folder / "run.toml"
    sha256 = read_text(str(text), bytes_max=16 << 20).sha256
    path.write_text(
        RUN_TOML.format(
            text=text, sha256=sha256, stages=stages, replicas=replicas, microbatches=microbatches
        )
    )
    return path


class ProcessSwarm:
    """Daemons of one run. Whoever asks for something waits for it; nothing waits without a bound."""

    def __init__(self, folder: Path, started: list[Daemon]) -> None:
        self.folder = folder
        self.nodes: dict[str, Daemon] = {}
        self._started = started
        self._run_file = write_run_file(folder)

    def start(self, name: str) -> Daemon:
        """Start a node, or again one that ended, with its identity and folder. Only the first is waited for."""
        first = next(iter(self.nodes.values()), None)
        if first is None:
            flags = ["--run", str(self._run_file)]
        else:
            flags = ["--join", (self.folder / "invite").read_text()]
        node = Daemon(self.folder / name, *flags, "--threads", "1", "--nice", "0")
        self._started.append(node)
        self.nodes[name] = node
        if first is None:
            node.wait_ready()
            (self.folder / "invite").write_text(node.command("invite").stdout.strip())
        return node

    def others(self, *but: Daemon) -> list[Daemon]:
        return [node for node in self.nodes.values() if node not in but]

    def step(self, node: Daemon) -> int:
        return int(pipeline(node)["step"] or 0)

    def wait_members(self, count: int, *, seen_by: Daemon) -> None:
        """Wait until a node sees so many members."""
        self.wait(lambda: len(pipeline(seen_by)["members"]) == count)

    def wait_whole(self) -> None:
        """Wait until every node is a member that has its stage's state, and steps are committed."""
        self.wait(lambda: all(_serves(node) for node in self.nodes.values()))
        first = next(iter(self.nodes.values()))
        self.wait_members(len(self.nodes), seen_by=first)
        self.wait_steps(2, seen_by=first)

    def wait_steps(self, count: int, *, seen_by: Daemon) -> None:
        """Wait until so many further steps are committed."""
        goal = self.step(seen_by) + count
        self.wait(lambda: self.step(seen_by) >= goal)

    def wait(self, reached: Callable[[], Any]) -> None:
        """Wait until something holds; a node that does not answer just now is asked again."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            try:
                if reached():
                    return
            except NodeError:
                pass
            time.sleep(0.1)
        raise AssertionError(
            "\n\n".join(f"{name}: {node.tail(12)}" for name, node in self.nodes.items())
        )

    def records(self, node: Daemon) -> list[Record]:
        """Return what a node's journal says was decided."""
        (path,) = node.paths.state_dir.glob("runs/*/records.msgpack")
        return list(read_journal(path))


def pipeline(node: Daemon) -> dict[str, Any]:
    """Return what a node says about its part in the run. Raises NodeError while it cannot say."""
    status: dict[str, Any] = node.ask("status")
    found: dict[str, Any] = status["services"].get("pipeline", {})
    if "members" not in found:
        raise NodeError("this node has not begun to train")
    return found


def _serves(node: Daemon) -> bool:
    found = pipeline(node)
    return bool(found["member"] and found["synced"])


def check_counted_once(records: list[Record]) -> int:
    """Check every step whose record and the one before it are known; return how many there were."""
    checked = 0
    by_index = {record.index: record for record in records}
    for record in records:
        before = by_index.get(record.index - 1)
        if not record.commits_step or before is None:
            continue
        view = View(before.members)
        assert coverage_problem(record, view, microbatches=MICROBATCHES, stages=STAGES) is None
        checked += 1
    return checked


@contextmanager
def process_swarm(folder: Path) -> Iterator[ProcessSwarm]:
    """Collect daemons; at the end none of them, nor a child of theirs, is left."""
    with daemons() as started:
        yield ProcessSwarm(folder, started)


def child(node: Daemon, of: str) -> int:
    """Return the pid of the node's p2pd or dht process."""
    status = node.ask("status")
    if of == "p2pd":
        return int(status["network"]["transport"]["pid"])
    return int(status["services"]["directory"]["pid"] or 0)
