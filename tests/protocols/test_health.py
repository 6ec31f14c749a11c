"""What healthy means."""

from __future__ import annotations

import pytest

from protocols.health import Facts, Health


def steps(health: Health, *, every_s: float, count: int, from_s: float = 0.0) -> float:
    """Let steps be committed at a pace; return when the last one was."""
    for number in range(count + 1):
        health.observe(from_s + number * every_s, Facts(step=number))
    return from_s + count * every_s


def test_before_training_has_begun_there_is_nothing_to_judge() -> None:
    assert Health().problem(1e9) is None


def test_the_first_minute_is_in_order_and_then_a_step_is_due() -> None:
    health = Health()
    health.observe(100.0, Facts(step=None, waiting_for="a majority of the members to be heard"))
    assert health.problem(160.0) is None
    assert health.problem(161.0) == (
        "no first step for 61 s: waits for a majority of the members to be heard"
    )


def test_a_fast_run_is_missed_after_a_minute_and_a_slow_one_after_ten_steps() -> None:
    fast, slow = Health(), Health()
    last_s = steps(fast, every_s=0.1, count=30)
    assert fast.problem(last_s + 60.0) is None
    assert "no step for 61 s" in (fast.problem(last_s + 61.0) or "")
    last_s = steps(slow, every_s=30.0, count=5)
    assert slow.problem(last_s + 299.0) is None
    assert slow.problem(last_s + 301.0) is not None


def test_only_the_last_twenty_steps_say_what_is_usual() -> None:
    health = Health()
    last_s = steps(health, every_s=600.0, count=5)
    for number in range(21):
        last_s += 1.0
        health.observe(last_s, Facts(step=6 + number))
    assert health.patience_s == 60.0


def test_many_steps_between_two_looks_count_for_what_each_took() -> None:
    health = Health()
    health.observe(0.0, Facts(step=0))
    health.observe(100.0, Facts(step=10))
    assert health.patience_s == 100.0


@pytest.mark.parametrize(
    "facts",
    [Facts(step=0, complete=True), Facts(step=0, leaving=True), Facts(step=0, resting=True)],
)
def test_a_run_that_is_over_a_node_that_leaves_and_one_that_waits_to_begin_are_in_order(
    facts: Facts,
) -> None:
    health = Health()
    health.observe(0.0, Facts(step=0))
    health.observe(1000.0, facts)
    assert health.problem(5000.0) is None


def test_what_has_waited_to_begin_gets_its_minute_then() -> None:
    health = Health()
    for second in range(1000):
        health.observe(float(second), Facts(step=0, resting=True))
    health.observe(1000.0, Facts(step=0))
    assert health.problem(1050.0) is None
    assert health.problem(1070.0) is not None
