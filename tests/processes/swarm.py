"""Small swarms of real daemons on loopback: a tiny model, so that a step takes tens of milliseconds."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node.errors import NodeError
from protocols.ledger.view import Record
from swarm.data.text import read_text
from swarm.pipeline.journal import read_journal
from tests.node.processes import Daemon, daemons
from tests.processes.forked import ForkedDaemon
from tests.processes.history import check_counted_once, check_same_states, one_history
from tests.processes.points import done_in_step, states

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
dtype = "{dtype}"
[pipeline]
stages = {stages}
microbatches = {microbatches}
replicas_to_start = {replicas}
[training]
batch = {batch}
steps = {steps}
evaluate_every = 10
evaluation_samples = 4
[deadlines]
floor_s = 1.5
ceiling_s = 10.0
"""


def write_run_file(
    folder: Path,
    *,
    stages: int = STAGES,
    replicas: int = 2,
    microbatches: int = MICROBATCHES,
    steps: int = 1_000_000,
    dtype: str = "float32",
) -> Path:
    """Write a text and a run that trains on it."""
    text = folder / "text"
    text.write_bytes(b"one peer tells another what it has counted\n" * (TEXT_BYTES // 43))
    path = folder / "run.toml"
    sha256 = read_text(str(text), bytes_max=16 << 20).sha256
    path.write_text(
        RUN_TOML.format(
            text=text,
            sha256=sha256,
            stages=stages,
            replicas=replicas,
            microbatches=microbatches,
            batch=2 * microbatches,
            steps=steps,
            dtype=dtype,
        )
    )
    return path


class ProcessSwarm:
    """Daemons of one run, written by `write_run_file`. Whoever asks for something waits for it; nothing waits without a bound."""

    def __init__(self, folder: Path, started: list[Daemon], **of_run: Any) -> None:
        self.folder = folder
        self.nodes: dict[str, ForkedDaemon] = {}
        """By name, the present life of each."""
        self.run_file = write_run_file(folder, **of_run)
        self._started = started

    def start(self, name: str, *flags: str, doomed: Daemon | None = None) -> ForkedDaemon:
        """Start a node, or again one that ended, with its identity and folder. Only the first is waited for.

        Args:
          doomed: is not to invite it, being about to die: nobody else's address might be in its invite.
        """
        entry = ["--join", self.invite(doomed)] if self.nodes else ["--run", str(self.run_file)]
        node = self.launch(name, *entry, *flags)
        if len(self.nodes) == 1:
            node.wait_ready()
        return node

    def launch(self, name: str, *flags: str) -> ForkedDaemon:
        """Start a node with these flags, which say how it gets into the run."""
        common = ("--data", str(self.folder / "text"), "--threads", "1", "--nice", "0")
        node = ForkedDaemon(self.folder / name, *flags, *common)
        self.adopt(name, node)
        return node

    def adopt(self, name: str, node: ForkedDaemon) -> None:
        """Look after a node that was started otherwise."""
        self._started.append(node)
        self.nodes[name] = node

    def invite(self, *but: Daemon | None) -> str:
        """Return the invite of a node that runs."""
        found: list[str] = []

        def ask() -> bool:
            inviter = next(iter(self.living(*but)))
            found.append(inviter.ask("invite")["invite"])
            return True

        self.wait(ask)
        return found[-1]

    def living(self, *but: Daemon | None) -> list[ForkedDaemon]:
        """Return the nodes that run, in the order of their first start."""
        return [
            node for node in self.nodes.values() if node not in but and node.process.poll() is None
        ]

    def kill_all(self) -> None:
        """Kill every node that runs, as a loss of power does: all are known, with their children, before the first goes."""
        living = self.living()
        for node in living:
            node.family()
        for node in living:
            node.kill()

    def lead(self) -> ForkedDaemon:
        """Return the node that leads, by its own account."""
        found: list[ForkedDaemon] = []

        def look() -> bool:
            found[:] = [node for node in self.living() if pipeline(node)["leading"]]
            return len(found) == 1

        self.wait(look)
        return found[0]

    def step(self, node: Daemon) -> int:
        return int(pipeline(node)["step"] or 0)

    def wait_members(self, count: int, *, seen_by: Daemon) -> None:
        """Wait until a node sees so many members."""
        self.wait(lambda: len(pipeline(seen_by)["members"]) == count)

    def wait_whole(self) -> None:
        """Wait until every node that runs is a member that has its stage's state, and steps are committed."""
        living = self.living()
        self.wait(lambda: all(_serves(node) for node in living))
        self.wait_members(len(living), seen_by=living[0])
        self.wait_steps(2, seen_by=living[0])

    def wait_steps(self, count: int, *, seen_by: Daemon) -> None:
        """Wait until so many further steps are committed."""
        goal = self.step(seen_by) + count
        self.wait(lambda: self.step(seen_by) >= goal)

    def wait(self, reached: Callable[[], Any], *, patience_s: float = PATIENCE_S) -> None:
        """Wait until something holds; a node that does not answer just now is asked again."""
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            try:
                if reached():
                    return
            except NodeError:
                pass
            time.sleep(0.05)
        raise AssertionError(
            "\n\n".join(f"{name}: {node.tail(12)}" for name, node in self.nodes.items())
        )

    def wait_died(self, victim: ForkedDaemon) -> int:
        """Wait until a node has done what it was ordered; return the step it was in. It leaves nothing behind."""
        self.wait(lambda: victim.process.poll() is not None)
        assert victim.process.returncode == -signal.SIGKILL, victim.tail()
        step = done_in_step(victim.witness)
        assert step is not None
        assert victim.left_behind() == set()
        return step

    def records(self, node: Daemon) -> list[Record]:
        """Return what a node's journal says was decided."""
        return [
            record
            for path in node.paths.state_dir.glob("runs/*/records.msgpack")
            for record in read_journal(path)
        ]

    def check_history(self) -> int:
        """Check what all nodes, the dead ones too, have written down; return how many steps were counted once.

        There is one history, in it every step counts every microbatch once, and who applied a step has the state that
        everybody else has.
        """
        journals = {name: self.records(node) for name, node in self.nodes.items()}
        check_same_states(states(node.witness) for node in self.nodes.values())
        return check_counted_once(one_history(journals), microbatches=MICROBATCHES, stages=STAGES)


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


@contextmanager
def process_swarm(folder: Path, **of_run: Any) -> Iterator[ProcessSwarm]:
    """Collect daemons; at the end none of them, nor a child of theirs, is left. `of_run` is for `write_run_file`."""
    with daemons() as started:
        yield ProcessSwarm(folder, started, **of_run)


def child(node: Daemon, of: str) -> int:
    """Return the pid of the node's p2pd or dht process."""
    status = node.ask("status")
    if of == "p2pd":
        return int(status["network"]["transport"]["pid"])
    return int(status["services"]["directory"]["pid"] or 0)
