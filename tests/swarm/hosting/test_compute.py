"""The compute thread against a real thread: order is forced with events, never with time."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence

import outcome
import pytest
import trio
import trio.testing

from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import BusyError, ClosedError

pytestmark = pytest.mark.trio

Body = Callable[[ComputeThread], Awaitable[None]]
PATIENCE_S = 10.0


def with_compute(body: Body, *, queue_max: int = 64, batch_max: int = 1) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with ComputeThread("test", queue_max=queue_max, batch_max=batch_max) as compute:
                await body(compute)

    trio.run(main)


class Blocker:
    """Work that keeps the thread until it is told to go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "blocked"

    async def occupy(self, compute: ComputeThread, nursery: trio.Nursery) -> None:
        nursery.start_soon(compute.run, self)
        await trio.to_thread.run_sync(self.begun.wait)


def test_work_runs_in_the_thread_and_its_result_comes_back() -> None:
    async def body(compute: ComputeThread) -> None:
        assert await compute.run(lambda: threading.current_thread().name) == "test"
        assert await compute.run(divmod, 7, 2) == (3, 1)

    with_compute(body)


def test_what_the_work_raises_is_raised_where_it_was_asked_for_and_the_thread_goes_on() -> None:
    async def body(compute: ComputeThread) -> None:
        with pytest.raises(ZeroDivisionError):
            await compute.run(divmod, 1, 0)
        assert await compute.run(divmod, 7, 2) == (3, 1)

    with_compute(body)


def test_a_full_queue_is_busy() -> None:
    async def body(compute: ComputeThread) -> None:
        blocker = Blocker()
        async with trio.open_nursery() as nursery:
            await blocker.occupy(compute, nursery)
            for _ in range(2):
                nursery.start_soon(compute.run, divmod, 1, 1)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BusyError):
                await compute.run(divmod, 1, 1)
            blocker.go_on.set()
        assert (compute.stats.tasks, compute.stats.refused) == (3, 1)

    with_compute(body, queue_max=2)


def test_a_cancelled_waiter_takes_back_work_that_has_not_begun() -> None:
    async def body(compute: ComputeThread) -> None:
        blocker = Blocker()
        ran: list[str] = []
        async with trio.open_nursery() as nursery:
            await blocker.occupy(compute, nursery)
            with trio.move_on_after(0) as scope:
                await compute.run(ran.append, "never")
            async with trio.open_nursery() as waiting:
                waiting.start_soon(compute.run, ran.append, "never")
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            assert scope.cancelled_caught
            blocker.go_on.set()
        await compute.run(ran.append, "last")
        assert ran == ["last"]
        assert compute.stats.withdrawn == 1

    with_compute(body)


def test_work_that_has_begun_is_awaited_and_its_result_is_not_lost() -> None:
    async def body(compute: ComputeThread) -> None:
        blocker, results = Blocker(), []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                results.append(await compute.run(blocker))

            nursery.start_soon(ask)
            await trio.to_thread.run_sync(blocker.begun.wait)
            nursery.cancel_scope.cancel()
            blocker.go_on.set()
        assert results == ["blocked"]

    with_compute(body)


def test_waiting_items_with_one_key_are_computed_together_and_each_gets_its_own_result() -> None:
    async def body(compute: ComputeThread) -> None:
        batches: list[list[int]] = []

        def halve(items: Sequence[int]) -> list[outcome.Outcome[int]]:
            batches.append(list(items))
            return [
                outcome.Error(ValueError("odd")) if n % 2 else outcome.Value(n // 2) for n in items
            ]

        results: dict[int, int] = {}
        odd: list[int] = []

        async def ask(number: int) -> None:
            try:
                results[number] = await compute.run_joined(halve, number, key="halve")
            except ValueError:
                odd.append(number)

        blocker = Blocker()
        async with trio.open_nursery() as nursery:
            await blocker.occupy(compute, nursery)
            for number in (2, 3, 4, 6):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            blocker.go_on.set()
        assert batches == [[2, 3, 4], [6]]
        assert (results, odd) == ({2: 1, 4: 2, 6: 3}, [3])

    with_compute(body, batch_max=3)


def test_bookkeeping_is_done_in_the_order_of_the_work_and_not_for_errors() -> None:
    async def body(compute: ComputeThread) -> None:
        order: list[int] = []

        def work(items: Sequence[int]) -> list[outcome.Outcome[int]]:
            return [
                outcome.Error(ValueError()) if item == 5 else outcome.Value(item) for item in items
            ]

        async def ask(number: int) -> None:
            try:
                await compute.run_joined(
                    work, number, key=number, on_value=lambda: order.append(number)
                )
            except ValueError:
                assert number == 5

        blocker = Blocker()
        async with trio.open_nursery() as nursery:
            await blocker.occupy(compute, nursery)
            for number in range(20):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            blocker.go_on.set()
        assert order == [number for number in range(20) if number != 5]

    with_compute(body)


def test_closing_refuses_what_waits() -> None:
    async def main() -> None:
        blocker = Blocker()
        refused: list[bool] = []
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with pytest.raises(ClosedError):
                        await compute.run(divmod, 1, 1)
                    refused.append(True)
                    blocker.go_on.set()

                async with ComputeThread("test") as compute:
                    await blocker.occupy(compute, nursery)
                    nursery.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(trio.to_thread.run_sync, blocker.go_on.set)
                with pytest.raises(ClosedError):
                    await compute.run(divmod, 1, 1)
        assert refused == [True]

    trio.run(main)


def test_a_thread_that_cannot_start_refuses_everything_and_hangs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = threading.Event()

    def prepare() -> None:
        assert begun.wait(PATIENCE_S)
        raise OSError("no such device")

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                ComputeThread("test", prepare=prepare) as compute,
                trio.open_nursery() as nursery,
            ):

                async def ask() -> None:
                    with pytest.raises(ClosedError):
                        await compute.run(divmod, 1, 1)

                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                begun.set()

    trio.run(main)
    assert "no such device" in caplog.text
