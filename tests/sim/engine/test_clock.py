"""A run that never ends is a finding like any other: it ends, and says which seed it was."""

from __future__ import annotations

import dataclasses

import pytest

from tests.sim.engine.clock import Clock, EndlessRunError
from tests.sim.engine.runner import outcome_of
from tests.sim.engine.subject import DEFAULT, subject_of


def test_what_plans_itself_at_the_same_instant_ends_the_run() -> None:
    clock = Clock()
    clock.actions_left = 100

    def again() -> None:
        clock.after(0.0, again)

    again()
    with pytest.raises(EndlessRunError, match="again"):
        clock.run_until(1.0)


def test_a_seed_with_too_many_actions_is_named() -> None:
    outcome = outcome_of(dataclasses.replace(subject_of(DEFAULT), actions_max=1000), 7)
    assert outcome.seed == 7
    assert outcome.promise == "no error"
    assert outcome.failure is not None
    assert "EndlessRunError" in outcome.failure
