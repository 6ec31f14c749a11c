"""Group averaging, as the engine runs it."""

from __future__ import annotations

from typing import Final

from tests.sim.averaging.checkers import ALL
from tests.sim.averaging.faults import AveragingFaults
from tests.sim.averaging.world import draw_world
from tests.sim.engine.subject import Subject

SUBJECT: Final = Subject(
    mode="averaging",
    unit="averages",
    draw=draw_world,
    faults=AveragingFaults,
    checkers=ALL,
    safety_s=120.0,
    liveness_s=600.0,
)
