"""Two nodes on a network in memory, for the tests of swarm.calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from trio.testing import MockClock

from protocols.frames import FrameKind, Limits, TensorSpec, encode_frame
from protocols.handshake import protocol_of
from protocols.ports import Stream
from protocols.replies import Hello
from protocols.schema import encode
from swarm.calls import Answer, Caller, Guard, Incoming, Pace, Service, WireTensor
from swarm.calls.channel import Channel
from swarm.calls.traffic import Traffic
from tests.fakes.host import MemoryHost, MemoryNetwork
from tests.fakes.signer import SeededSigner

SERVICE = "test"
HELLO = encode_frame(FrameKind.HELLO, encode(Hello()))


@dataclass(frozen=True, slots=True)
class Pair:
    """A caller on `here`, and `there`, where services may be started."""

    network: MemoryNetwork
    here: MemoryHost
    there: MemoryHost
    caller: Caller
    guard: Guard
    """Of `there`."""

    async def serve(
        self, answer: Callable[[Incoming], Awaitable[Answer]], **options: Any
    ) -> Service:
        accept = options.pop("accept", lambda peer, hello: None)
        service = Service(
            self.there, SERVICE, answer=answer, accept=accept, guard=self.guard, **options
        )
        await service.start()
        return service

    async def call(
        self, message: Any = None, *tensors: WireTensor, deadline_s: float = 60.0
    ) -> Answer:
        return await self.caller.call(
            self.there.peer_id, SERVICE, message, tensors, deadline_s=deadline_s
        )

    async def open_raw(self) -> Stream:
        """Open a stream to the service as an attacker does: byte by byte."""
        return await self.here.open_stream(self.there.peer_id, protocol_of(SERVICE))

    async def open_channel(self) -> Channel:
        """Open a stream and be welcomed on it."""
        channel = Channel(await self.open_raw(), limits=Limits(), pace=Pace(), traffic=Traffic())
        await channel.send_raw(HELLO)
        assert (await channel.receive_head()).kind is FrameKind.HELLO
        return channel


@asynccontextmanager
async def two_nodes(*, guard: Guard | None = None, **caller_options: Any) -> AsyncIterator[Pair]:
    async with MemoryNetwork.open() as network:
        here, there = network.join(SeededSigner(1).peer_id), network.join(SeededSigner(2).peer_id)
        caller_options.setdefault("guard", caller_options.pop("caller_guard", None))
        caller = Caller(here, hello=caller_options.pop("hello", Hello()), **caller_options)
        yield Pair(network, here, there, caller, guard or Guard())


async def echo(incoming: Incoming) -> Answer:
    return Answer(incoming.message, incoming.tensors)


def tensor(data: bytes, dtype: str = "uint8", shape: tuple[int, ...] | None = None) -> WireTensor:
    return WireTensor(TensorSpec(dtype, (len(data),) if shape is None else shape), memoryview(data))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test in virtual time."""
    trio.run(main, clock=MockClock(autojump_threshold=0))
