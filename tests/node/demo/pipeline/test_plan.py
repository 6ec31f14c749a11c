"""What the demo trains: enough of it, on text that is there."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from node.demo.scenarios.pipeline.figures import STEPS_MIN, TOKENS_MIN
from node.demo.scenarios.pipeline.plan import STEPS, STEPS_TO_JOIN, Plan, make_plan
from node.errors import NodeError
from protocols.run.pipeline import pipeline_of


def plan_of(folder: Path, *, steps: int = STEPS, data: str = "") -> Plan:
    text = folder / 'a "quoted" text'
    text.write_bytes(b"a text of some length. " * 2000)
    return make_plan(folder / "run.toml", data=data or str(text), steps=steps, dtype="float32")


def test_the_default_demo_is_long_enough_for_its_bounds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert pipeline_of(plan.run).steps >= STEPS_MIN
    assert plan.tokens >= TOKENS_MIN


@pytest.mark.parametrize("steps", [10, 20, STEPS_TO_JOIN, STEPS])
def test_faults_come_one_after_the_other_and_leave_steps_to_recover(
    tmp_path: Path, steps: int
) -> None:
    plan = plan_of(tmp_path, steps=steps)
    times = [0, plan.kill_node_at, plan.kill_trainer_at, plan.join_at or steps - 2, steps]
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(times))


def test_nobody_joins_a_run_that_is_over_too_soon(tmp_path: Path) -> None:
    assert plan_of(tmp_path, steps=STEPS_TO_JOIN - 1).join_at is None


def test_text_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no text was found") as raised:
        plan_of(tmp_path, data=str(tmp_path / "nothing*"))
    assert "--data" in raised.value.hint


def test_too_little_text_is_said(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"too short")
    with pytest.raises(NodeError, match="too few"):
        plan_of(tmp_path, data=str(short))
