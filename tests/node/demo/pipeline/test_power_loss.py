"""The bounds of a loss of power, each broken alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from node.demo.scenarios.pipeline.power_loss import Figures, broken_bounds

GOOD = Figures(
    steps=120,
    nodes=6,
    lost_at_step=62,
    resumed_step=48,
    steps_lost=14,
    steps_lost_allowed=17,
    resume_seconds=10.8,
    final_loss=2.1,
    reference_loss=2.1,
    relative_difference=1e-7,
    parameter_difference=1e-6,
    microbatches_expected=2880,
    microbatches_missing=0,
    microbatches_repeated=0,
    seconds=153.1,
    processor="a processor",
    cores=2,
    date="2026-01-01",
)


def test_a_good_story_breaks_no_bound() -> None:
    assert list(broken_bounds(GOOD, dtype="float32")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps_lost": None}, "did not go on"),
        ({"steps_lost": 18}, "18 steps were lost"),
        ({"relative_difference": 2e-4}, "differ by"),
        ({"microbatches_missing": 1}, "1 of 2880 microbatches were not counted"),
        ({"microbatches_repeated": 2}, "2 microbatches were counted again"),
    ],
)
def test_each_broken_bound_is_said(changes: dict[str, Any], said: str) -> None:
    (sentence,) = broken_bounds(dataclasses.replace(GOOD, **changes), dtype="float32")
    assert said in sentence
