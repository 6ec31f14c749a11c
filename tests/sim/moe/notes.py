"""What the simulated shell tells the checkers that no core says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.experts.messages import Message
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.ids import PeerID
from tests.sim.moe.state import State


@dataclass(frozen=True, slots=True)
class Blended:
    """A host has taken a replica's copy into its own."""

    uid: ExpertUID
    epoch: int
    source: PeerID


@dataclass(frozen=True, slots=True)
class HostingBegun:
    """A copy of an expert takes calls from now on."""

    uid: ExpertUID
    epoch: int
    origin: State | None
    """None: initial weights."""


@dataclass(frozen=True, slots=True)
class HostingEnded:
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class ExpertStepped:
    """A copy has taken a gradient."""

    uid: ExpertUID
    epoch: int
    version: int
    """After the step."""
    known_epoch: int
    """The newest that the caller knew when it sent the gradient."""


@dataclass(frozen=True, slots=True)
class SnapshotStored:
    """A keeper has it."""

    uid: ExpertUID
    state: State


@dataclass(frozen=True, slots=True)
class Asked:
    """A control message to another node."""

    target: PeerID
    message: Message


@dataclass(frozen=True, slots=True)
class LookBegun:
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class SearchEnded:
    grid: Grid
    scores: Sequence[Sequence[float]]
    beam: int
    found: Sequence[ExpertUID]
    seconds: float
    """By the peer's own clock."""
    in_time: bool
    """All that it asked for was answered."""


@dataclass(frozen=True, slots=True)
class Faulted:
    """The guard counts a fault of this peer."""

    target: PeerID
    reason: str
