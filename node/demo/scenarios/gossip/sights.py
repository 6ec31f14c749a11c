"""What one look at the nodes of a gossip run found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.demo.scene import Scene, Sight, common, section_of, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSight(Sight):
    """One peer of a gossip run."""

    accuracy: float | None = None
    """Percent of the held-out samples."""
    exchanges: int = 0
    """Snapshots of its model that it has pushed."""
    averages: int = 0
    neighbours: int = 0
    models_taken: int = 0
    refused: int = 0
    fetched: bool = False
    """It began with a neighbour's model."""

    def signs(self) -> tuple[Any, ...]:
        return self.state, self.step, self.averages


@dataclass(frozen=True, slots=True)
class GossipScene(Scene[GossipSight]):
    """All peers of a gossip run."""

    @property
    def mean_step(self) -> float:
        """Over the peers that train."""
        return statistics.fmean([sight.step for sight in self.up if sight.step] or [0])

    @property
    def mean_exchanges(self) -> float:
        return statistics.fmean([sight.exchanges for sight in self.up] or [0])

    @property
    def mean_accuracy(self) -> float | None:
        """None until every peer that trains has looked at the held-out samples."""
        found = [sight.accuracy for sight in self.up if sight.step]
        known = [accuracy for accuracy in found if accuracy is not None]
        return statistics.fmean(known) if known and len(known) == len(found) else None


class GossipView:
    """How the demo looks at peers of which each trains so many batches."""

    columns = ("batches", "accuracy", "averages", "neighbours", "models", "refused")

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def sight(self, blank: Sight, status: Mapping[str, Any]) -> GossipSight:
        section = section_of(status)
        return GossipSight(
            name=blank.name,
            role=blank.role,
            fate=blank.fate,
            **common(status),
            accuracy=section.get("accuracy"),
            exchanges=section.get("snapshots", 0),
            averages=section.get("averages", 0),
            neighbours=section.get("neighbours_live", 0),
            models_taken=section.get("models_taken", 0),
            refused=section.get("models_refused", 0),
            fetched=bool(section.get("started_from")),
        )

    def scene(self, sights: Sequence[Sight]) -> GossipScene:
        return GossipScene([widened(sight, GossipSight) for sight in sights])

    def headline(self, scene: GossipScene) -> str:
        parts = [f"batch {scene.mean_step:.0f}/{self._steps}"]
        if scene.mean_accuracy is not None:
            parts.append(f"mean accuracy {scene.mean_accuracy:.1f} %")
        losses = [sight.loss for sight in scene.up if sight.loss is not None]
        if losses:
            parts.append(f"mean training loss {statistics.fmean(losses):.3f}")
        parts.append(f"{len(scene.up)} nodes up")
        return ", ".join(parts)

    def cells(self, sight: Sight) -> Sequence[str]:
        wide = widened(sight, GossipSight)
        return (
            "-" if wide.step is None else str(wide.step),
            "-" if wide.accuracy is None else f"{wide.accuracy:.1f} %",
            str(wide.averages),
            str(wide.neighbours) if wide.up else "-",
            str(wide.models_taken),
            str(wide.refused),
        )
