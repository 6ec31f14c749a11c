"""What one look at the nodes of a moe run found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.demo.scene import Scene, Sight, common, section_of, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSight(Sight):
    """One node of a moe run."""

    hosted: int = 0
    alive: int = 0
    """Experts that it knows to be alive."""
    adopted: int = 0
    lost: int = 0
    failed: int = 0
    """Steps that found too few experts."""
    absent: int = 0
    """Calls that came to nothing."""
    call_ms: float | None = None
    staleness: float | None = None

    def signs(self) -> tuple[Any, ...]:
        return self.state, self.step, self.hosted, self.alive


@dataclass(frozen=True, slots=True)
class MoeScene(Scene[MoeSight]):
    """All nodes of a moe run."""

    @property
    def mean_step(self) -> float:
        """Over the nodes that are up."""
        return statistics.fmean([sight.step or 0 for sight in self.up] or [0])

    @property
    def hosted(self) -> int:
        """Experts on nodes that are up."""
        return sum(sight.hosted for sight in self.up)


class MoeView:
    """How the demo looks at nodes of which each trains so many batches."""

    columns = ("batches", "loss", "experts", "adopted", "lost", "call ms", "staleness")

    def __init__(self, steps: int, experts: int) -> None:
        self._steps = steps
        self._experts = experts

    def sight(self, blank: Sight, status: Mapping[str, Any]) -> MoeSight:
        section = section_of(status)
        return MoeSight(
            name=blank.name,
            role=blank.role,
            fate=blank.fate,
            **common(status),
            hosted=section.get("experts_hosted", 0),
            alive=section.get("experts_alive", 0),
            adopted=section.get("experts_adopted", 0),
            lost=section.get("experts_lost", 0),
            failed=section.get("steps_failed", 0),
            absent=section.get("calls_absent", 0),
            call_ms=section.get("call_p50_ms"),
            staleness=section.get("staleness"),
        )

    def scene(self, sights: Sequence[Sight]) -> MoeScene:
        return MoeScene([widened(sight, MoeSight) for sight in sights])

    def headline(self, scene: MoeScene) -> str:
        parts = [f"batch {scene.mean_step:.0f}/{self._steps}"]
        losses = [sight.loss for sight in scene.up if sight.loss is not None]
        if losses:
            parts.append(f"mean training loss {statistics.fmean(losses):.3f}")
        parts.append(f"{scene.hosted}/{self._experts} experts on {len(scene.up)} nodes")
        return ", ".join(parts)

    def cells(self, sight: Sight) -> Sequence[str]:
        wide = widened(sight, MoeSight)
        return (
            "-" if wide.step is None else str(wide.step),
            "-" if wide.loss is None else f"{wide.loss:.3f}",
            str(wide.hosted) if wide.up else "-",
            str(wide.adopted),
            str(wide.lost),
            "-" if wide.call_ms is None else f"{wide.call_ms:.1f}",
            "-" if wide.staleness is None else f"{wide.staleness:.1f}",
        )
