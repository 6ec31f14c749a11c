"""Supervision: a failing service comes back, and never takes the others with it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from node.errors import NodeError
from node.services import BACKOFF_MAX_S, ServiceGroup, backoff_s
from protocols.errors import LocalProtocolError

pytestmark = pytest.mark.trio


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Scripted:
    """Fails as often as it has errors, then works until cancelled."""

    def __init__(self, name: str, errors: list[Exception], *, drain_s: float = 0.0) -> None:
        self.name = name
        self.errors = errors
        self.runs = 0
        self.drained = False
        self._drain_s = drain_s

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self.runs += 1
        task_status.started()
        if self.errors:
            raise self.errors.pop(0)
        await trio.sleep_forever()

    async def drain(self, deadline_s: float) -> None:
        await trio.sleep(self._drain_s)
        self.drained = True

    def status(self) -> dict[str, Any]:
        return {"runs": self.runs}


@pytest.mark.parametrize("error", [NodeError("no network"), LocalProtocolError("a bug")])
def test_a_service_that_fails_is_started_again_and_says_why(error: Exception) -> None:
    async def main() -> None:
        group = ServiceGroup(random.Random(0))
        service = Scripted("one", [error, error])
        with trio.move_on_after(60):
            await group.keep_running(service)
        (member,) = group.members
        assert service.runs == 3
        assert member.status() == {
            "runs": 3,
            "up": True,
            "restarts": 2,
            "last_error": f"{type(error).__name__}: {error}",
        }

    run(main)


def test_a_failing_service_does_not_disturb_its_neighbour() -> None:
    async def main() -> None:
        group = ServiceGroup(random.Random(0))
        bad = Scripted("bad", [ValueError(str(i)) for i in range(100)])
        good = Scripted("good", [])
        with trio.move_on_after(600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.keep_running, bad)
                nursery.start_soon(group.keep_running, good)
        assert good.runs == 1
        assert 600 / BACKOFF_MAX_S < bad.runs < 60  # backed off, and not given up

    run(main)


def test_a_service_that_is_done_is_forgotten() -> None:
    class Done(Scripted):
        async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()

    async def main() -> None:
        group = ServiceGroup(random.Random(0))
        await group.keep_running(Done("done", []))
        assert group.members == ()

    run(main)


def test_draining_takes_no_longer_than_its_deadline_and_waits_for_nobody_twice() -> None:
    async def main() -> None:
        group = ServiceGroup(random.Random(0))
        quick, slow = Scripted("quick", [], drain_s=1), Scripted("slow", [], drain_s=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.keep_running, quick)
            nursery.start_soon(group.keep_running, slow)
            await trio.testing.wait_all_tasks_blocked()
            began_s = trio.current_time()
            await group.drain(20)
            assert trio.current_time() - began_s == pytest.approx(20)
            assert quick.drained
            assert not slow.drained
            nursery.cancel_scope.cancel()

    run(main)


def test_a_service_that_cannot_drain_does_not_keep_others_from_it() -> None:
    class Broken(Scripted):
        async def drain(self, deadline_s: float) -> None:
            raise ValueError("no")

    async def main() -> None:
        group = ServiceGroup(random.Random(0))
        broken, other = Broken("broken", []), Scripted("other", [], drain_s=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(group.keep_running, broken)
            nursery.start_soon(group.keep_running, other)
            await trio.testing.wait_all_tasks_blocked()
            await group.drain(20)
            assert other.drained
            nursery.cancel_scope.cancel()

    run(main)


def test_pauses_double_up_to_a_bound_and_differ_between_nodes() -> None:
    rng = random.Random(1)
    pauses = [backoff_s(failures, rng) for failures in range(1, 40)]
    assert max(pauses) <= BACKOFF_MAX_S
    assert pauses[0] <= 0.5
    assert len(set(pauses)) == len(pauses)
