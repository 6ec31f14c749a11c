"""What one look at the nodes of a collective run found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.demo.scene import Scene, Sight, common, section_of, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSight(Sight):
    """One peer of a collective run."""

    trained: int = 0
    """Local steps that it has trained itself."""
    rounds: int = 0
    missed: int = 0
    group: int = 0
    """Peers in its last round."""
    joined_early: int = 0
    adoptions: int = 0
    """Outer states of fragments that it took over from others."""
    exchanged_bytes: int = 0
    """By its own calls, in both directions: with all nodes' together, every byte once."""
    finished: bool = False

    def signs(self) -> tuple[Any, ...]:
        return self.state, self.step, self.rounds


@dataclass(frozen=True, slots=True)
class CollectiveScene(Scene[CollectiveSight]):
    """All peers of a collective run."""

    @property
    def finished(self) -> bool:
        return bool(self.up) and all(sight.finished for sight in self.up)


class CollectiveView:
    """How the demo looks at peers that train so many local steps."""

    columns = ("step", "held out", "rounds", "missed", "group", "early")

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def sight(self, blank: Sight, status: Mapping[str, Any]) -> CollectiveSight:
        section = section_of(status)
        return CollectiveSight(
            name=blank.name,
            role=blank.role,
            fate=blank.fate,
            **common(status),
            trained=section.get("steps_trained", 0),
            rounds=section.get("rounds", 0),
            missed=section.get("rounds_missed", 0),
            group=section.get("group", 0),
            joined_early=section.get("joined_early", 0),
            adoptions=section.get("adoptions", 0),
            exchanged_bytes=section.get("bytes_exchanged", 0),
            finished=bool(section.get("finished")),
        )

    def scene(self, sights: Sequence[Sight]) -> CollectiveScene:
        return CollectiveScene([widened(sight, CollectiveSight) for sight in sights])

    def headline(self, scene: CollectiveScene) -> str:
        parts = [f"step {scene.step}/{self._steps}"]
        for name, found in (
            ("held-out loss", [sight.held_out_loss for sight in scene.up]),
            ("mean training loss", [sight.loss for sight in scene.up]),
        ):
            known = [loss for loss in found if loss is not None]
            if known:
                parts.append(f"{name} {statistics.fmean(known):.3f}")
        parts.append(f"{len(scene.up)} nodes up")
        return ", ".join(parts)

    def cells(self, sight: Sight) -> Sequence[str]:
        wide = widened(sight, CollectiveSight)
        return (
            "-" if wide.step is None else str(wide.step),
            "-" if wide.held_out_loss is None else f"{wide.held_out_loss:.3f}",
            str(wide.rounds),
            str(wide.missed),
            str(wide.group),
            str(wide.joined_early),
        )
