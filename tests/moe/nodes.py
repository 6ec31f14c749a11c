"""Nodes with experts on a network in memory, and a layer that is used from a thread as in life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import trio
from torch import Tensor, nn

from moe.peer import ExpertPeer, PeerSettings
from protocols.experts.messages import EXPERT_SERVICE
from protocols.experts.uid import ExpertUID, Grid
from protocols.frames import Limits
from protocols.ids import PeerID, RunID
from protocols.replies import Hello
from protocols.run import SgdSpec
from swarm.calls import Answer, Caller, Guard, Incoming
from swarm.calls.rates import UNLIMITED
from swarm.endpoints import Endpoint, Endpoints
from swarm.hosting.compute import ComputeThread
from tests.fakes.directory import MemoryDht
from tests.fakes.host import MemoryHost, MemoryNetwork
from tests.fakes.signer import SeededSigner

RUN = RunID(bytes(32))
WIDTH = 8
GRID = Grid("ffn", (2, 2))
SGD = SgdSpec(kind="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
SETTINGS = PeerSettings(refresh_s=0.1, floor_s=0.5, ceiling_s=5.0, clip_norm=0.0, staleness_max=8)
LIMITS = Limits(header_bytes_max=4096, body_bytes_max=1 << 24, tensors_max=2)

T = TypeVar("T")


@dataclass(slots=True)
class Node:
    host: MemoryHost
    caller: Caller
    peer: ExpertPeer
    endpoints: Endpoints
    guard: Guard
    compute: ComputeThread
    failed: list[PeerID] = field(default_factory=list)

    @property
    def me(self) -> PeerID:
        return self.host.peer_id

    async def serve(self, uid: ExpertUID, *, epoch: int = 1) -> nn.Module:
        expert = await self.peer.host(uid, lambda: expert_of(uid), SGD, row=(WIDTH,), epoch=epoch)
        return expert.hosted.module

    async def lie(self, answer: Callable[[Incoming], Awaitable[Answer]]) -> None:
        """Answer the service `expert` otherwise from now on."""
        await self.endpoints.open({EXPERT_SERVICE: Endpoint(answer)})


def expert_of(uid: ExpertUID) -> nn.Module:
    """Make an expert whose weights depend on its name alone."""
    generator = torch.Generator().manual_seed(sum((i + 1) * u for i, u in enumerate(uid.place)) + 7)
    module = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@asynccontextmanager
async def nodes(
    count: int, *, settings: PeerSettings = SETTINGS
) -> AsyncIterator[tuple[MemoryNetwork, Sequence[Node]]]:
    dht = MemoryDht()
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(MemoryNetwork.open())
        nursery = await stack.enter_async_context(trio.open_nursery())
        made = []
        for index in range(count):
            signer = SeededSigner(index)
            host, guard = network.join(signer.peer_id), Guard()
            caller = Caller(host, hello=Hello(run=RUN), limits=LIMITS, guard=guard)
            compute = await stack.enter_async_context(ComputeThread("test", batch_max=1 << 16))
            endpoints = Endpoints(
                host, RUN, run_key=None, guard=guard, rates=UNLIMITED, limits=LIMITS
            )
            failed: list[PeerID] = []
            peer = ExpertPeer(
                me=signer.peer_id, run=RUN, directory=dht.directory(signer), caller=caller,
                compute=compute, unix_s=trio.current_time, rate=lambda step: SGD.lr,
                settings=settings, failed=failed.append,
            )  # fmt: skip
            await nursery.start(caller.run)
            await nursery.start(peer.run)
            await endpoints.open(peer.wire())
            made.append(Node(host, caller, peer, endpoints, guard, compute, failed))
        try:
            yield network, made
        finally:
            nursery.cancel_scope.cancel()


async def in_thread(fn: Callable[..., T], *args: Any) -> T:
    """Use a layer as its user does: outside of the event loop."""
    return await trio.to_thread.run_sync(fn, *args)


async def until_known(node: Node, count: int, grid: Grid = GRID) -> None:
    """Wait until a node knows so many live experts."""
    node.peer.watch([grid])
    with trio.fail_after(10):
        while len(node.peer.view.alive(grid, trio.current_time())) != count:  # noqa: ASYNC110 - the view tells nobody
            await trio.sleep(0.01)


def local_mixture(x: Tensor, scores: Tensor, modules: Sequence[nn.Module], k: int) -> Tensor:
    """Compute in one process what the layer should: softmax over the k best of each row."""
    best = scores.topk(k, dim=1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)  # (R, N)
    outputs = torch.stack([module(x) for module in modules], dim=1)  # (R, N, C)
    return (weights[:, :, None] * outputs).sum(dim=1)
