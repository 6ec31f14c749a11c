"""Coming back from the disk, as the engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.sim.engine.checker import Checker
from tests.sim.engine.subject import Subject
from tests.sim.restart.checkers import ALL
from tests.sim.restart.faults import RestartFaults
from tests.sim.restart.world import RestartWorld, draw_world


def _draw(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ALL
) -> RestartWorld:
    return draw_world(seed, detailed=detailed, checkers=checkers)


SUBJECT: Final = Subject(
    mode="restart",
    unit="members",
    draw=_draw,
    faults=RestartFaults,
    checkers=ALL,
    safety_s=120.0,
    liveness_s=240.0,
)
