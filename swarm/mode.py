"""The seam behind which every way of training stands. The node implements RunContext, a mode implements Mode.

A mode is a package with a class that has these methods, a table in the run file (`protocols.run.tables`) and an entry in
`node.modes`; docs/modes.md shows a whole one. Neither side imports the other, and nothing here loads torch. What a mode says
of itself to the command line is a `swarm.mode_info.ModeInfo`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from protocols.frames import Limits
from protocols.ids import PeerID
from protocols.ports import Directory, Host, Signer, VerifySignature
from protocols.run import RunSpec
from swarm.endpoints import Endpoint
from swarm.mode_info import Wishes
from swarm.state.part import Part

if TYPE_CHECKING:
    from torch import Tensor
    from trio_typing import TaskStatus

    from protocols.frames import TensorSpec
    from swarm.calls import Guard, Rates
    from swarm.hosting.compute import ComputeThread
    from swarm.resources import Resources
    from swarm.state.checkpoint import Checkpoint


class Life(Protocol):
    """The node's state machine, as far as a mode reports to it."""

    def needs_state(self, service: str, reason: str) -> None:
        """Something is missing before this node can take part: it is syncing."""
        ...

    def has_state(self, service: str, reason: str) -> None:
        """This node takes part fully: it is serving."""
        ...


class Keeper(Protocol):
    """The node's checkpoints, as far as a mode uses them."""

    @property
    def enabled(self) -> bool: ...

    async def offer(self, part: Part, compute: ComputeThread, *, last: bool = False) -> None:
        """Say that a part has reached its present version; returns when its copy is made, if one is due. Never raises.

        Args:
          last: the run ends with this version: it is written whatever the pace, and has been when this returns.
        """
        ...

    async def offer_own(self, part: Part, compute: ComputeThread) -> None:
        """The same for a part that no other node has, so that any version will do; returns when it is written. Never raises."""
        ...

    async def forget(self, part: str) -> None:
        """Delete what is on disk of a part that this node does not hold any more. Never raises."""
        ...

    async def scan(self, version_max: int | None = None) -> list[Checkpoint]:
        """Return what is on disk, newest first, the files not verified yet."""
        ...

    async def load(
        self, checkpoint: Checkpoint, expected: Mapping[str, TensorSpec] | None
    ) -> dict[str, Tensor] | None:
        """Verify and load one; None when it is refused, which has been told then."""
        ...

    def put_aside(self) -> str:
        """Keep what is on disk where it is not found again, in place of what was put aside before; return where."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a mode gets from the node, for as long as the node lives."""

    run: RunSpec
    signer: Signer
    verify: VerifySignature
    host: Host
    directory: Directory
    guard: Guard
    rates: Rates
    run_key: bytes | None
    """None for a public run."""
    wishes: Wishes
    founding: Callable[[], Any]
    """`await founding()` is true when this node begins the run, false when it joins it; known after a while."""
    folder: Path
    """Of this run, private to this node."""
    life: Life
    refuses_work: Callable[[], str | None]
    """Why this node takes no new work just now, or None."""
    rng: random.Random
    keeper: Keeper
    unix_s: Callable[[], float]
    """Wall clock, where something must grow over this node's restarts."""

    @property
    def me(self) -> PeerID:
        return self.signer.peer_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a mode is doing: the same facts for all of them, kept at hand, so that saying them costs nothing."""

    in_run: bool = False
    """Others count on this node."""
    role: str = ""
    """What it does, in a word or two: `stage 1`, `trains`, `experts`."""
    step: int | None = None
    """Optimizer steps: of the run where peers share them, else this peer's own."""
    steps: int | None = None
    loss: float | None = None
    """Of training, lately."""
    held_out_loss: float | None = None
    samples_per_second: float | None = None
    peers: int = 0
    """That take part, as far as this node knows, itself included."""
    waiting_for: str | None = None
    resting: bool = False
    """No step is due, though nothing is wrong: it waits for the peers to begin with, or for somebody to ask."""
    problems: tuple[str, ...] = ()
    """What a person should look at."""


class Mode(Protocol):
    """One way of training, on one node. The object lives as long as the node; `run` is called again after it raised."""

    @property
    def name(self) -> str:
        """The table in the run file, the topic in the directory, and the section in the status."""
        ...

    @property
    def limits(self) -> Limits:
        """Bounds on what is received as answers, and on what `wire` receives as far as an endpoint says nothing else."""
        ...

    @property
    def batch_max(self) -> int:
        """Tasks of one kind that the compute thread may join."""
        ...

    def wire(self) -> Mapping[str, Endpoint]:
        """Name the services that peers may call. The node registers each name once and keeps it."""
        ...

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take part until cancelled."""
        ...

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new, finish or hand over what is held, withdraw announcements. Still running meanwhile."""
        ...

    def progress(self) -> Progress:
        """Say how it goes. O(1): strangers may ask."""
        ...

    def detail(self) -> dict[str, Any]:
        """Return the mode's own rows of the status, plain data, for the node's owner only."""
        ...

    def parts(self) -> Sequence[Part]:
        """Return what this node holds, complete parts only."""
        ...

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the model as one safetensors file and return facts about it. Raises ExportRefusedError, OSError."""
        ...


class ExportRefusedError(Exception):
    """There is nothing to export just now; the text says why."""
