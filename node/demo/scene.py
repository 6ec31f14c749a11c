"""What one look at the demo's nodes found. Pure: plain values made from what `murmura status` says.

What all modes say is here; a scenario adds what it needs of its mode by a Sight and a Scene of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar

SceneT = TypeVar("SceneT", bound="Scene[Any]")
SightT = TypeVar("SightT", bound="Sight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One node, as one look found it."""

    name: str
    role: str
    fate: str
    """`up`, or what became of it: `killed`, `drained`."""
    state: str = "starting"
    peer_id: str = ""
    step: int | None = None
    """Optimizer steps, as this node knows: of the run, or its own."""
    loss: float | None = None
    held_out_loss: float | None = None
    waiting_for: str = ""
    problem: str = ""
    """Why it cannot train."""

    @property
    def up(self) -> bool:
        return self.fate == "up"

    @property
    def rank(self) -> tuple[Any, ...]:
        """The larger, the more this node knows."""
        return (self.step or 0,)

    def signs(self) -> tuple[Any, ...]:
        """Return something that changes when anything happens to this node."""
        return self.state, self.step


@dataclass(frozen=True, slots=True)
class Scene(Generic[SightT]):
    """All nodes, as one look found them, in the order in which they were started."""

    sights: Sequence[SightT]

    @property
    def up(self) -> Sequence[SightT]:
        return [sight for sight in self.sights if sight.up]

    @property
    def step(self) -> int:
        """The last step that anybody up knows of."""
        return max((sight.step or 0 for sight in self.up), default=0)

    @property
    def latest(self) -> SightT | None:
        """The one who knows most."""
        known = [sight for sight in self.up if sight.step is not None]
        return max(known, key=lambda sight: sight.rank, default=None)

    def find(self, name: str) -> SightT:
        return next(sight for sight in self.sights if sight.name == name)

    def progress(self) -> object:
        """Return something that changes when anything happens."""
        return tuple(sight.signs() for sight in self.up)


def common(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a status says in every mode, as arguments of a Sight."""
    section = section_of(status)
    return {
        "state": status["life"]["state"],
        "peer_id": status["node"]["peer_id"],
        "step": section.get("step"),
        "loss": section.get("loss"),
        "held_out_loss": section.get("held_out_loss"),
        "waiting_for": section.get("waiting_for") or "",
        "problem": section.get("data_problem") or "",
    }


def widened(sight: Sight, kind: type[SightT]) -> SightT:
    """Return the sight as one of a mode: a node that has not answered yet, or is gone, has no facts of its mode."""
    if isinstance(sight, kind):
        return sight
    return kind(**{item.name: getattr(sight, item.name) for item in fields(Sight)})


def section_of(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the mode's own section of a status; empty before there is one."""
    section: Mapping[str, Any] = status["services"].get(status["run"]["mode"] or "", {})
    return section


class View(Protocol[SceneT]):
    """How a scenario looks at its nodes, and what a person sees of them."""

    @property
    def columns(self) -> Sequence[str]:
        """Of the table, after node, role and state."""
        ...

    def sight(self, blank: Sight, status: Mapping[str, Any]) -> Sight:
        """Take what the scenario needs from a node's status; name, role and fate are the blank's."""
        ...

    def scene(self, sights: Sequence[Sight]) -> SceneT: ...

    def headline(self, scene: SceneT) -> str:
        """Say how it goes in one line; somebody is up and has a step."""
        ...

    def cells(self, sight: Sight) -> Sequence[str]:
        """Return a row of the table, one cell per column."""
        ...
