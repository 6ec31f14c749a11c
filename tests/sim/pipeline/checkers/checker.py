"""A checker of the pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.engine import checker

if TYPE_CHECKING:
    from tests.sim.pipeline.world import PipelineWorld


class Checker(checker.Checker):
    """Watches one promise of a pipeline."""

    world: PipelineWorld

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
