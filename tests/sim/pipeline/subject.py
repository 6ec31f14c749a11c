"""The pipeline, as the engine runs it."""

from __future__ import annotations

from typing import Final

from tests.sim.engine.subject import Subject
from tests.sim.pipeline.checkers import ALL
from tests.sim.pipeline.faults import PipelineFaults
from tests.sim.pipeline.world import draw_world

SUBJECT: Final = Subject(
    mode="pipeline",
    unit="steps",
    draw=draw_world,
    faults=PipelineFaults,
    checkers=ALL,
)
