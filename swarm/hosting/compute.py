"""One thread that does all the work of one device, asked from trio. No torch here: `torch_threads` loads it, in there.

Rules of this file:
- Work is done oldest first, one batch at a time (`swarm.hosting.batching`); the queue is bounded and says so.
- A waiter that is cancelled before its work began takes it back. Once begun, work is always awaited and its result
  returned; the cancellation comes at the waiter's next checkpoint. So "was it counted?" always has an answer.
- `on_value` runs on trio's thread when a result arrives, in the order in which results were made. Tasks themselves wake
  in any order, so bookkeeping that later work relies on belongs there.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar, cast

import outcome
import trio

from protocols.errors import LocalProtocolError
from swarm.hosting.batching import BatchQueue, Task
from swarm.hosting.errors import BusyError, ClosedError
from swarm.tensors.threads import load_torch

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CLOSE_S: Final = 10.0
"""Longer than any batch takes on a working device, and well within the 25 s a node has to end."""


@dataclass(slots=True)
class ComputeStats:
    """What the thread has done so far. Written by it, read anywhere."""

    batches: int = 0
    tasks: int = 0
    refused: int = 0
    """Tasks that found the queue full."""
    withdrawn: int = 0
    """Tasks whose waiter was cancelled before they began."""
    busy_s: float = 0.0
    waited_s: float = 0.0
    """Sum over tasks, from asking to beginning."""


@dataclass(slots=True, eq=False)
class _Job(Task):
    work: Callable[[Sequence[Any]], Sequence[outcome.Outcome[Any]]]
    item: Any
    waiter: trio.lowlevel.Task
    on_value: Callable[[], None] | None
    asked_s: float


class ComputeThread(AbstractAsyncContextManager["ComputeThread"]):
    """`async with ComputeThread("compute", prepare=torch_threads(2)) as compute: await compute.run(fn, ...)`.

    Args:
      name: of the thread, as tools show it.
      prepare: called in the thread before any work.
      nice: priority of the thread and of those it starts, 0 to 19; a volunteer's own programs come first.
      queue_max: waiting tasks; with one batch in work, the longest wait is about this many batches.
      batch_max: microbatches that may be computed together.
    """

    def __init__(
        self,
        name: str,
        *,
        prepare: Callable[[], None] = lambda: None,
        nice: int = 0,
        queue_max: int = 64,
        batch_max: int = 1,
    ) -> None:
        self.stats = ComputeStats()
        self._prepare = prepare
        self._nice = nice
        self._queue: BatchQueue[_Job] = BatchQueue(tasks_max=queue_max, size_max=batch_max)
        self._changed = threading.Condition()  # guards _queue and _closed; never held during work
        self._closed = False
        self._trio: trio.lowlevel.TrioToken | None = None
        self._began_s: float | None = None
        """When what is in work began; written by the thread."""
        # A daemon, so that a device that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    async def __aenter__(self) -> ComputeThread:
        self._trio = trio.lowlevel.current_trio_token()
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Refuse what waits and return once the work in progress is done, or has hung for `CLOSE_S`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_S)
        if self._thread.is_alive():
            log.warning("compute thread left behind: name=%s", self._thread.name)

    @property
    def waiting(self) -> int:
        """Tasks that have not begun: this node's queue, as others may see it."""
        return len(self._queue)

    @property
    def task_seconds(self) -> float:
        """How long the batch in work has taken so far, 0 when there is none. One that never ends is a device that hangs."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.perf_counter() - began_s

    async def run(self, fn: Callable[..., Result], *args: Any) -> Result:
        """Call `fn(*args)` in the thread and return its result. Raises BusyError, ClosedError, and what it raises."""
        call = functools.partial(fn, *args)
        return cast("Result", await self._submit(_alone, call, key=None, size=1, on_value=None))

    async def run_own(self, fn: Callable[..., Result], *args: Any) -> Result:
        """Like `run`, for what this node has to do itself, a few jobs at a time: a queue full of peers' calls cannot
        keep it from a step. Raises ClosedError, and what `fn` raises.
        """
        call = functools.partial(fn, *args)
        return cast(
            "Result",
            await self._submit(_alone, call, key=None, size=1, on_value=None, bounded=False),
        )

    async def run_joined(
        self,
        work: Callable[[Sequence[Item]], Sequence[outcome.Outcome[Result]]],
        item: Item,
        *,
        key: object,
        size: int = 1,
        on_value: Callable[[], None] | None = None,
    ) -> Result:
        """Compute one item together with others that wait with an equal key, and return its own result.

        Args:
          work: takes the items, oldest first, and gives one outcome each. Equal keys must mean the same `work`.
          size: microbatches in this item.
          on_value: called on trio's thread when the result arrives, unless it is an error. Must not raise.
        """
        return cast("Result", await self._submit(work, item, key=key, size=size, on_value=on_value))

    async def _submit(
        self,
        work: Callable[[Sequence[Any]], Sequence[outcome.Outcome[Any]]],
        item: Any,
        *,
        key: object,
        size: int,
        on_value: Callable[[], None] | None,
        bounded: bool = True,
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(
            key, size, work, item, trio.lowlevel.current_task(), on_value, time.perf_counter()
        )
        with self._changed:
            if self._closed or self._trio is None:
                raise ClosedError("the compute thread is not running; its log says why")
            if not self._queue.add(job, bounded=bounded):
                self.stats.refused += 1
                raise BusyError("the queue of the compute thread is full")
            self._changed.notify()

        def withdraw(_: object) -> trio.lowlevel.Abort:
            with self._changed:
                if not self._queue.withdraw(job):
                    return trio.lowlevel.Abort.FAILED
            self.stats.withdrawn += 1
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(withdraw)

    # --- in the thread -----------------------------------------------------------------------------------------

    def _main(self) -> None:
        if self._nice:
            # Linux gives every thread its own niceness, and new threads inherit it: torch's are started from this one.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        self._began_s = time.perf_counter()
        try:
            self._prepare()
        except Exception:
            log.exception("compute thread cannot start: name=%s", self._thread.name)
            with self._changed:
                self._closed = True
        self._began_s = None
        while batch := self._next():
            self._do(batch)

    def _next(self) -> list[_Job]:
        """Wait for work; empty means that the thread should end."""
        with self._changed:
            while not self._closed and not len(self._queue):
                self._changed.wait()
            if not self._closed:
                return self._queue.take()
            while refused := self._queue.take():
                self._deliver(
                    refused,
                    [outcome.Error(ClosedError("the compute thread is closing")) for _ in refused],
                )
            return []

    def _do(self, batch: list[_Job]) -> None:
        begun_s = self._began_s = time.perf_counter()
        results: Sequence[outcome.Outcome[Any]]
        try:
            results = batch[0].work([job.item for job in batch])
            if len(results) != len(batch):
                raise LocalProtocolError(f"{len(batch)} items gave {len(results)} results")
        except Exception as error:  # noqa: BLE001 - the boundary: whatever the work raises belongs to its waiters
            results = [outcome.Error(error) for _ in batch]
        self._began_s = None
        self.stats.batches += 1
        self.stats.tasks += len(batch)
        self.stats.busy_s += time.perf_counter() - begun_s
        self.stats.waited_s += sum(begun_s - job.asked_s for job in batch)
        self._deliver(batch, results)

    def _deliver(self, batch: Sequence[_Job], results: Sequence[outcome.Outcome[Any]]) -> None:
        """Wake all waiters of a batch with one entry into the event loop."""
        assert self._trio is not None
        self._trio.run_sync_soon(_wake, tuple(zip(batch, results, strict=True)))


def torch_threads(count: int) -> Callable[[], None]:
    """Return a `prepare` that loads torch and lets it use `count` cores from this thread."""
    return functools.partial(load_torch, count)


def _alone(calls: Sequence[Callable[[], Any]]) -> list[outcome.Outcome[Any]]:
    return [outcome.Value(call()) for call in calls]


def _wake(pairs: Sequence[tuple[_Job, outcome.Outcome[Any]]]) -> None:
    for job, result in pairs:
        if job.on_value is not None and isinstance(result, outcome.Value):
            job.on_value()
        trio.lowlevel.reschedule(job.waiter, result)
