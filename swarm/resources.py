"""What a mode works with while it runs: a caller, the compute thread, and a thread for codecs and hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from protocols.frames import Limits
from protocols.ids import RunID
from protocols.ports import Host
from protocols.replies import Hello
from swarm.calls import Caller, Guard, Rates
from swarm.hosting.compute import ComputeThread, torch_threads

_COMPUTE_QUEUE: Final = 64
_CODEC_QUEUE: Final = 1024


@dataclass(frozen=True, slots=True)
class Resources:
    """Opened anew each time a mode is started."""

    caller: Caller
    compute: ComputeThread
    codec: ComputeThread
    more: list[ComputeThread] = field(default_factory=list)
    """Threads that a mode has started besides, so that one that hangs is seen."""

    @property
    def task_seconds(self) -> float:
        """How long the longest of what the threads are at has taken so far."""
        threads = (self.compute, self.codec, *self.more)
        return max(thread.task_seconds for thread in threads)


@asynccontextmanager
async def open_resources(
    host: Host,
    run: RunID,
    *,
    run_key: bytes | None,
    guard: Guard,
    rates: Rates,
    limits: Limits,
    threads: int = 1,
    nice: int = 0,
    batch_max: int = 1,
) -> AsyncIterator[Resources]:
    """Start the threads and the caller, and end them with the block.

    Args:
      limits: of answers to our calls.
      batch_max: tasks of one kind that the compute thread may join.
    """
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        compute = await stack.enter_async_context(
            ComputeThread(
                "compute",
                prepare=torch_threads(threads),
                nice=nice,
                queue_max=_COMPUTE_QUEUE,
                batch_max=batch_max,
            )
        )
        codec = await stack.enter_async_context(
            ComputeThread("codec", nice=nice, queue_max=_CODEC_QUEUE)
        )
        caller = Caller(
            host, hello=Hello(run=run), limits=limits, run_key=run_key, guard=guard, rates=rates
        )
        await nursery.start(caller.run)
        try:
            yield Resources(caller, compute, codec)
        finally:
            nursery.cancel_scope.cancel()
