"""A run that goes on from the checkpoint of another (`[start]`) keeps what every run promises, at steps that count on."""

from __future__ import annotations

import pytest

from tests.sim.pipeline.subject import SUBJECT
from tests.sim.pipeline.world import draw_world

pytestmark = pytest.mark.sim

FIRST_STEP = 7


@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_begins_at_another_step_keeps_every_promise(seed: int) -> None:
    world = draw_world(seed, first_step=FIRST_STEP)
    world.run(safety_s=SUBJECT.safety_s, liveness_s=SUBJECT.liveness_s)
    assert world.newest_record is not None
    assert min(record.step for record in world.records.values()) == FIRST_STEP
