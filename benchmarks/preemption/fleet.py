"""A pipeline of real daemons that come and go, each at the address it always has."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from benchmarks.preemption.runs import STAGES
from node.errors import NodeError
from node.identity import Identity
from node.local import LocalNode
from protocols.ledger.view import Record
from swarm.pipeline.journal import read_journal

WAIT_S: Final = 120.0
"""Six nodes that start at once on a small machine mostly import torch."""
LOOK_S: Final = 0.02
_ASK_S: Final = 5.0


class Fleet:
    """Nodes of one run. As a context manager it leaves none running.

    Args:
      folder: each node gets a state folder in it; its path must be short, for sockets lie in it.
      flags: of `murmura run`, for every node, besides those that name run and addresses.
    """

    def __init__(self, folder: Path, run_file: Path, names: Iterable[str], *flags: str) -> None:
        self.folder = folder
        self.nodes: dict[str, LocalNode] = {}
        """By name, those that were started and have not been ended."""
        self.names = tuple(names)
        self._flags = ("--run", str(run_file), "--threads", "1", "--nice", "0", *flags)
        self._listen: dict[str, str] = {}
        self._bootstrap: list[str] = []
        for name, port in zip(self.names, _free_ports(len(self.names)), strict=True):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            peer = Identity.load_or_create(folder / name / "identity.key").peer_id
            self._listen[name] = f"/ip4/127.0.0.1/tcp/{port}"
            self._bootstrap += ["--bootstrap", f"{self._listen[name]}/p2p/{peer}"]

    def start(self, *names: str, flags: Iterable[str] = ()) -> None:
        """Start nodes at once, all of them if none is named, in this order."""
        for name in names or self.names:
            self.nodes[name] = LocalNode(
                self.folder / name,
                *self._flags,
                *self._bootstrap,
                *("--listen", self._listen[name]),
                *flags,
            )

    def end(self, name: str) -> LocalNode:
        """Forget a node, and return it to whoever ends it."""
        return self.nodes.pop(name)

    def kill_all(self) -> None:
        """Take the power: SIGKILL to all before anything is waited for."""
        for node in self.nodes.values():
            node.family()
        for node in self.nodes.values():
            node.process.kill()
        for node in self.nodes.values():
            node.close()
            if left := node.left_behind():
                raise NodeError(f"a killed node left processes behind: {sorted(left)}")
        self.nodes.clear()

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return what each node says about its part in the run; {} of one that cannot say yet."""
        return {name: section_of(node) for name, node in self.nodes.items()}

    def step(self) -> int:
        """The last step that anybody knows to be committed."""
        return max((s.get("step") or 0 for s in self.sections().values()), default=0)

    def wait(self, what: str, reached: Callable[[], Any], *, every_s: float = 0.1) -> None:
        """Wait until something holds. Raises NodeError when it does not, or when a node ends by itself."""
        deadline_s = time.monotonic() + WAIT_S
        while not reached():
            for name, node in self.nodes.items():
                if (code := node.process.poll()) is not None:
                    raise NodeError(f"node {name} ended with exit code {code}:", node.tail())
            if time.monotonic() > deadline_s:
                tails = "\n".join(f"{n}: {node.tail(6)}" for n, node in self.nodes.items())
                raise NodeError(f"still waiting after {WAIT_S:g} s for {what}:", tails)
            time.sleep(every_s)

    def wait_whole(self) -> None:
        """Wait until every node that runs serves its stage as a member."""
        self.wait("every node to serve", lambda: all(map(serves, self.sections().values())))

    def wait_steps(self, count: int) -> None:
        """Wait until so many further steps are committed."""
        goal = self.step() + count
        self.wait(f"step {goal}", lambda: self.step() >= goal)

    def wait_step_everywhere(self, step: int) -> None:
        """Wait, looking closely, until every node that runs has seen this step committed."""
        self.wait(
            f"step {step} at all nodes",
            lambda: all((s.get("step") or 0) >= step for s in self.sections().values()),
            every_s=LOOK_S,
        )

    def journals(self) -> list[list[Record]]:
        """Return what each node has written down of what was decided."""
        paths = sorted(self.folder.glob("*/runs/*/records.msgpack"))
        return [list(read_journal(path)) for path in paths]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes.values():
            node.process.kill()
        for node in self.nodes.values():
            node.close()


def section_of(node: LocalNode) -> dict[str, Any]:
    """Return a node's section about its run; {} while it cannot say."""
    try:
        status = node.ask("status", timeout_s=_ASK_S)
    except NodeError:
        return {}
    section: dict[str, Any] = status["services"].get("pipeline", {})
    return section


def serves(section: dict[str, Any]) -> bool:
    """The node is a member and has the state of its stage."""
    return bool(section.get("member") and section.get("synced"))


def names_of(count: int = 2 * STAGES) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(1, count + 1))


def _free_ports(count: int) -> list[int]:
    """Return ports that were free together."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
