"""What one look at the demo's nodes found. Pure: plain values made from what `murmura status` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One node, as one look found it."""

    name: str
    role: str
    fate: str
    """`up`, or what became of it: `killed`, `drained`."""
    state: str = "starting"
    peer_id: str = ""
    stage: int | None = None
    step: int | None = None
    """Committed steps, as this node knows."""
    counting_step: int | None = None
    """The step it counts microbatches of; None when it hosts nothing."""
    counted_in_step: int = 0
    counted: int = 0
    """Microbatches its stage has counted since it started."""
    in_flight: int = 0
    """Microbatches its trainer drives through the stages just now."""
    fetched_bytes: int = 0
    """State of its stage, received from replicas."""
    leading: bool = False
    waiting_for: str = ""
    loss: float | None = None
    held_out_loss: float | None = None
    tokens_per_second: float | None = None
    members_by_stage: tuple[int, ...] = ()
    data_problem: str = ""

    @property
    def up(self) -> bool:
        return self.fate == "up"

    @property
    def hosting(self) -> bool:
        return self.up and self.stage is not None


@dataclass(frozen=True, slots=True)
class Scene:
    """All nodes, as one look found them, in the order in which they were started."""

    sights: tuple[Sight, ...]

    @property
    def up(self) -> list[Sight]:
        return [sight for sight in self.sights if sight.up]

    @property
    def hosting(self) -> list[Sight]:
        return [sight for sight in self.sights if sight.hosting]

    @property
    def step(self) -> int:
        """The last committed step that anybody up knows of."""
        return max((sight.step or 0 for sight in self.up), default=0)

    @property
    def latest(self) -> Sight | None:
        """The one who knows most; the lead among equals."""
        known = [sight for sight in self.up if sight.step is not None]
        return max(known, key=lambda sight: (sight.step, sight.leading), default=None)

    def find(self, name: str) -> Sight:
        return next(sight for sight in self.sights if sight.name == name)

    def progress(self) -> object:
        """Return something that changes when anything happens."""
        return tuple(
            (sight.state, sight.stage, sight.step, sight.counted, sight.fetched_bytes)
            for sight in self.up
        )


def gone(last: Sight, fate: str) -> Sight:
    """What remains of a node that is gone."""
    return Sight(
        name=last.name,
        role=last.role,
        fate=fate,
        state=fate,
        peer_id=last.peer_id,
        step=last.step,
        counted=last.counted,
        fetched_bytes=last.fetched_bytes,
    )


def sight_of(blank: Sight, status: dict[str, Any]) -> Sight:
    """Take what the demo needs from a node's status."""
    pipeline: dict[str, Any] = status["services"].get("pipeline", {})
    return Sight(
        name=blank.name,
        role=blank.role,
        fate=blank.fate,
        state=status["life"]["state"],
        peer_id=status["node"]["peer_id"],
        stage=pipeline.get("stage"),
        step=pipeline.get("step"),
        counting_step=pipeline.get("counting_step"),
        counted_in_step=pipeline.get("microbatches_counted_in_step", 0),
        counted=pipeline.get("microbatches_counted", 0),
        in_flight=pipeline.get("microbatches_in_flight", 0),
        fetched_bytes=pipeline.get("state_fetched_bytes", 0),
        leading=pipeline.get("leading", False),
        waiting_for=pipeline.get("waiting_for") or "",
        loss=pipeline.get("loss"),
        held_out_loss=pipeline.get("held_out_loss"),
        tokens_per_second=pipeline.get("tokens_per_second"),
        members_by_stage=tuple(pipeline.get("members_by_stage", ())),
        data_problem=pipeline.get("data_problem") or "",
    )
