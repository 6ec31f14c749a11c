"""The demo's bounds: each one, broken alone, gives one sentence that says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from node.demo.scenarios.pipeline.figures import Figures, broken_bounds

GOOD = Figures(
    steps=120,
    tokens=430_080,
    initial_loss=5.572,
    final_loss=2.1,
    reference_loss=2.1,
    relative_difference=1e-7,
    parameter_difference=1e-6,
    nodes_started=8,
    nodes_killed=1,
    trainers_killed=1,
    nodes_joined_late=1,
    microbatches_expected=2880,
    microbatches_missing=0,
    microbatches_repeated=0,
    recovery_seconds_max=1.234,
    tokens_per_second=5432.1,
    reference_tokens_per_second=12345.6,
    seconds=170.04,
    processor="a processor",
    cores=2,
    date="2026-01-01",
)


def broken(*, dtype: str = "float32", shortened: bool = False, **changes: Any) -> list[str]:
    figures = dataclasses.replace(GOOD, **changes)
    return list(broken_bounds(figures, dtype=dtype, shortened=shortened))


def test_a_good_demo_breaks_no_bound() -> None:
    assert broken() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 99}, "99 steps"),
        ({"tokens": 399_999}, "399,999 tokens"),
        ({"final_loss": 4.6}, "from 5.572 to 4.600"),
        ({"relative_difference": 2e-4}, "held-out losses"),
        ({"parameter_difference": 2e-4}, "parameters differ"),
        ({"parameter_difference": math.nan}, "parameters differ"),
        ({"nodes_killed": 0}, "no node was killed"),
        ({"trainers_killed": 0}, "no trainer was killed"),
        ({"nodes_joined_late": 0}, "no node joined late"),
        ({"microbatches_missing": 3}, "3 of 2880 microbatches"),
        ({"microbatches_repeated": 1}, "1 microbatches were counted again"),
        ({"recovery_seconds_max": 5.1}, "5.1 s after a kill"),
        ({"seconds": 241.0}, "241 s"),
    ],
)
def test_each_broken_bound_is_said(changes: dict[str, Any], said: str) -> None:
    (sentence,) = broken(**changes)
    assert said in sentence


def test_float64_must_agree_to_1e9() -> None:
    (sentence,) = broken(dtype="float64")
    assert "1e-09" in sentence
    assert broken(dtype="float64", parameter_difference=1e-12) == []


def test_a_shortened_demo_is_not_judged_by_how_much_it_trains_but_still_by_how_exactly() -> None:
    short: dict[str, Any] = {
        "steps": 20, "tokens": 71_680, "final_loss": 5.0, "nodes_joined_late": 0, "seconds": 300.0,
    }  # fmt: skip
    assert broken(shortened=True, **short) == []
    assert len(broken(shortened=True, microbatches_missing=1, nodes_killed=0, **short)) == 2


def test_the_json_has_the_promised_keys_and_numbers_a_person_can_read() -> None:
    plain = json.loads(json.dumps(GOOD.to_json()))
    assert list(plain) == [
        "steps", "tokens", "initial_loss", "final_loss", "reference_loss", "relative_difference",
        "parameter_difference", "nodes_started", "nodes_killed", "trainers_killed", "nodes_joined_late",
        "microbatches_expected", "microbatches_missing", "microbatches_repeated", "recovery_seconds_max",
        "tokens_per_second", "reference_tokens_per_second", "seconds", "processor", "cores", "date",
    ]  # fmt: skip
    assert (plain["recovery_seconds_max"], plain["tokens_per_second"]) == (1.23, 5432)
