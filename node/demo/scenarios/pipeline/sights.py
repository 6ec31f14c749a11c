"""What one look at the nodes of a pipeline found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node.demo.scene import Scene, Sight, common, section_of, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSight(Sight):
    """One node of a pipeline."""

    stage: int | None = None
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
    tokens_per_second: float | None = None
    members_by_stage: tuple[int, ...] = ()

    @property
    def hosting(self) -> bool:
        return self.up and self.stage is not None

    @property
    def rank(self) -> tuple[Any, ...]:
        return self.step or 0, self.leading

    def signs(self) -> tuple[Any, ...]:
        return self.state, self.stage, self.step, self.counted, self.fetched_bytes


@dataclass(frozen=True, slots=True)
class PipelineScene(Scene[PipelineSight]):
    """All nodes of a pipeline."""

    @property
    def hosting(self) -> list[PipelineSight]:
        return [sight for sight in self.sights if sight.hosting]


class PipelineView:
    """How the demo looks at a pipeline of so many steps."""

    columns = ("stage", "step", "counted", "in flight")

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def sight(self, blank: Sight, status: Mapping[str, Any]) -> PipelineSight:
        section = section_of(status)
        return PipelineSight(
            name=blank.name,
            role=blank.role,
            fate=blank.fate,
            **common(status),
            stage=section.get("stage"),
            counting_step=section.get("counting_step"),
            counted_in_step=section.get("microbatches_counted_in_step", 0),
            counted=section.get("microbatches_counted", 0),
            in_flight=section.get("microbatches_in_flight", 0),
            fetched_bytes=section.get("state_fetched_bytes", 0),
            leading=section.get("leading", False),
            tokens_per_second=section.get("tokens_per_second"),
            members_by_stage=tuple(section.get("members_by_stage", ())),
        )

    def scene(self, sights: Sequence[Sight]) -> PipelineScene:
        return PipelineScene([widened(sight, PipelineSight) for sight in sights])

    def headline(self, scene: PipelineScene) -> str:
        """Return step, losses, speed and peers per stage in one line."""
        latest = scene.latest
        assert latest is not None
        parts = [f"step {scene.step}/{self._steps}"]
        if latest.loss is not None:
            parts.append(f"loss {latest.loss:.3f}")
        if latest.held_out_loss is not None:
            parts.append(f"held-out {latest.held_out_loss:.3f}")
        if latest.tokens_per_second:
            parts.append(f"{latest.tokens_per_second:,.0f} tokens/s")
        parts.append("peers per stage " + " ".join(map(str, latest.members_by_stage)))
        parts.append(f"{len(scene.up)} nodes up")
        return ", ".join(parts)

    def cells(self, sight: Sight) -> Sequence[str]:
        wide = widened(sight, PipelineSight)
        return (
            "-" if wide.stage is None else str(wide.stage),
            "-"
            if wide.step is None
            else str(wide.step) + (" (leads)" if wide.leading and wide.up else ""),
            str(wide.counted),
            str(wide.in_flight) if wide.up else "-",
        )
