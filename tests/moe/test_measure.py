"""How many experts a node takes follows how fast it computes one."""

from __future__ import annotations

import math

from moe.measure import experts_in_a_second, rows_per_s
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec, RunSpec, TextSpec, TrainingSpec

RUN = RunSpec(
    name="t",
    mode="moe",
    data=TextSpec(pattern="x", sha256="0" * 64),
    model=ByteTransformerSpec(layers=1, width=16, heads=2, context=32),
    training=TrainingSpec(batch=8),
    table=MoeSpec(grid=(4, 4), k=2, hidden=32),
)


def test_a_node_takes_as_many_experts_as_it_can_have_step_in_a_second_and_at_least_one() -> None:
    rows = 8 * 32 * 2 / 16  # tokens of a batch, two experts each, over sixteen experts
    assert experts_in_a_second(RUN, 10 * rows) == 10
    assert experts_in_a_second(RUN, 0.1 * rows) == 1


def test_rows_a_second_are_measured() -> None:
    measured = rows_per_s(RUN, 0.01)
    assert math.isfinite(measured)
    assert measured > 0
