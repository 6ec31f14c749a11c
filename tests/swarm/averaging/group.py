"""A group of averagers on the network in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import trio
from torch import Tensor

from protocols.averaging.settings import AveragingSpec
from protocols.frames import Limits
from protocols.ids import PeerID, RunID
from protocols.replies import Hello
from swarm.averaging.all_reduce import Averaged, Averager, RoundAbortedError
from swarm.calls import Caller, Guard, Rates
from swarm.endpoints import Endpoints
from swarm.hosting.compute import ComputeThread
from tests.fakes.host import MemoryHost, MemoryNetwork
from tests.fakes.signer import SeededSigner

RUN = RunID(bytes(32))
SPEC = AveragingSpec(
    gather_floor_s=0.2,
    gather_ceiling_s=3.0,
    answer_s=0.5,
    exchange_floor_s=1.0,
    exchange_ceiling_s=4.0,
)
LIMITS = Limits()


@dataclass
class Node:
    """One peer that averages."""

    host: MemoryHost
    averager: Averager
    caller: Caller
    guard: Guard
    endpoints: Endpoints
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer_id(self) -> PeerID:
        return self.host.peer_id


@dataclass
class Group:
    """All of them, and the network between them."""

    network: MemoryNetwork
    nodes: list[Node]
    stack: AsyncExitStack
    nursery: trio.Nursery
    options: dict[str, Any]

    async def add(self) -> Node:
        """Let one more peer come, known to nobody yet."""
        host = self.network.join(SeededSigner(len(self.nodes) + 1).peer_id)
        guard = Guard()
        codec = await self.stack.enter_async_context(ComputeThread("codec", queue_max=1024))
        caller = Caller(host, hello=Hello(run=RUN), guard=guard, limits=LIMITS)
        averager = Averager(
            host.peer_id, caller, codec, rng=random.Random(len(self.nodes)), **self.options
        )
        caller.on_unreachable = averager.lost
        endpoints = Endpoints(host, RUN, run_key=None, guard=guard, rates=Rates(), limits=LIMITS)
        node = Node(host, averager, caller, guard, endpoints)
        await self.nursery.start(self._live, node)
        await endpoints.open(averager.wire())
        self.nodes.append(node)
        return node

    async def _live(self, node: Node, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.caller.run)
                await nursery.start(node.averager.run)
                task_status.started()

    def meet(self) -> None:
        """Tell everybody of all the others, as a directory does."""
        for node in self.nodes:
            node.averager.found([other.peer_id for other in self.nodes if other is not node])

    def kill(self, node: Node) -> None:
        """End a peer without a word."""
        node.scope.cancel()
        self.network.crash(node.peer_id)
        self.nodes.remove(node)

    async def average(
        self,
        vectors: Sequence[Tensor],
        *,
        version: int = 1,
        key: str = "model",
        weights: Sequence[float] | None = None,
    ) -> list[Averaged | RoundAbortedError | None]:
        """Have all nodes average; None for one that was killed meanwhile."""
        results: list[Averaged | RoundAbortedError | None] = [None] * len(vectors)

        async def one(index: int, node: Node) -> None:
            weight = 1.0 if weights is None else weights[index]
            with trio.CancelScope() as scope:
                scopes[id(node)] = scope
                try:
                    results[index] = await node.averager.average(
                        key, version, vectors[index], weight
                    )
                except RoundAbortedError as error:
                    results[index] = error

        scopes: dict[int, trio.CancelScope] = {}
        self.scopes = scopes
        async with trio.open_nursery() as nursery:
            for index, node in enumerate(self.nodes[: len(vectors)]):
                nursery.start_soon(one, index, node)
        return results


@asynccontextmanager
async def open_group(count: int, **options: Any) -> AsyncIterator[Group]:
    options.setdefault("spec", SPEC)
    options.setdefault("chunk_elements", 1000)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(MemoryNetwork.open())
        async with trio.open_nursery() as nursery:
            group = Group(network, [], stack, nursery, options)
            for _ in range(count):
                await group.add()
            group.meet()
            yield group
            nursery.cancel_scope.cancel()


def play(
    count: int, script: Callable[[Group], Awaitable[None]], *, limit_s: float = 30.0, **options: Any
) -> None:
    """Run a script with a group of so many peers. The clock is real: codec threads do not know of another."""

    async def main() -> None:
        with trio.fail_after(limit_s):
            async with open_group(count, **options) as group:
                await script(group)

    trio.run(main)


def vectors_for(count: int, elements: int = 20_011, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(elements, generator=generator) for _ in range(count)]


def done(results: Sequence[Averaged | RoundAbortedError | None]) -> list[Averaged]:
    """Return the results when all of them are averages."""
    for result in results:
        assert isinstance(result, Averaged), result
    return [result for result in results if isinstance(result, Averaged)]
