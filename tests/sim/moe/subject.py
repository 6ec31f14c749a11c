"""Experts on volunteers' nodes, as the engine runs them."""

from __future__ import annotations

from typing import Final

from tests.sim.engine.subject import Subject
from tests.sim.moe.checkers import ALL
from tests.sim.moe.faults import MoeFaults
from tests.sim.moe.world import draw_world

SUBJECT: Final = Subject(
    mode="moe",
    unit="experts",
    draw=draw_world,
    faults=MoeFaults,
    checkers=ALL,
    liveness_s=240.0,
)
