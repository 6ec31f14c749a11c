"""The loop's lag is what a task that blocks adds to it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node.lag import IDLE_PERIOD_S, SAMPLES_MAX, LagMeter

pytestmark = pytest.mark.trio


def test_an_idle_loop_is_looked_at_about_once_a_second_and_is_never_late() -> None:
    async def main() -> None:
        meter = LagMeter()
        with trio.move_on_after(2 * SAMPLES_MAX * IDLE_PERIOD_S):
            await meter.run()
        lag = meter.read()
        assert lag.samples == SAMPLES_MAX  # bounded
        assert lag.max_ms == pytest.approx(0, abs=1e-6)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_task_that_blocks_the_loop_is_seen() -> None:
    async def main() -> None:
        meter = LagMeter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.current_clock().jump(3.1)  # type: ignore[attr-defined]
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert meter.read().max_ms == pytest.approx(3000)

    trio.run(main, clock=trio.testing.MockClock())


def test_before_anything_was_measured_the_lag_is_zero() -> None:
    assert LagMeter().read().p99_ms == 0
