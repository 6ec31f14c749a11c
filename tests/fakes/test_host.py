"""The network in memory keeps the Host contract, so what is tested on it holds on the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocols.ports import Host, PeerUnreachableError, StreamClosedError
from tests.contracts.host import PROTOCOL, HostContract, stream_between
from tests.fakes.host import MemoryNetwork
from tests.fakes.signer import SeededSigner


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Host, Host]]:
    async with MemoryNetwork.open() as network:
        yield network.join(SeededSigner(1).peer_id), network.join(SeededSigner(2).peer_id)


@pytest.mark.trio
class TestMemoryHost(HostContract):
    def two_hosts(self) -> AbstractAsyncContextManager[tuple[Host, Host]]:
        return two_hosts()

    def run_options(self) -> dict[str, Any]:
        return {"clock": MockClock(autojump_threshold=0)}


@pytest.mark.trio
def test_a_cut_link_delivers_nothing_until_it_is_healed() -> None:
    async def main() -> None:
        async with MemoryNetwork.open() as network:
            a, b = network.join(SeededSigner(1).peer_id), network.join(SeededSigner(2).peer_id)
            async with stream_between(a, b) as (here, there):
                network.link(a.peer_id, b.peer_id).cut = True
                await here.send_all(b"late")
                with trio.move_on_after(60.0) as scope:
                    await there.receive_some(10)
                assert scope.cancelled_caught
                with pytest.raises(PeerUnreachableError):
                    await a.open_stream(b.peer_id, PROTOCOL)
                network.heal(a.peer_id, b.peer_id)
                assert await there.receive_some(10) == b"late"

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.trio
def test_a_slow_link_takes_the_time_its_bytes_need() -> None:
    async def main() -> None:
        async with MemoryNetwork.open() as network:
            a, b = network.join(SeededSigner(1).peer_id), network.join(SeededSigner(2).peer_id)
            async with stream_between(a, b) as (here, there):
                link = network.link(a.peer_id, b.peer_id)
                link.delay_s, link.bytes_per_s = 2.0, 1000.0
                began_s = trio.current_time()
                await here.send_all(bytes(5000))
                await there.receive_into(memoryview(bytearray(5000)))
                assert trio.current_time() - began_s == pytest.approx(7.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.trio
def test_a_crash_resets_every_stream_of_the_host() -> None:
    async def main() -> None:
        async with MemoryNetwork.open() as network:
            a, b = network.join(SeededSigner(1).peer_id), network.join(SeededSigner(2).peer_id)
            async with stream_between(a, b) as (here, _):
                network.crash(b.peer_id)
                with pytest.raises(StreamClosedError):
                    await here.receive_some(1)
                with pytest.raises(PeerUnreachableError):
                    await a.open_stream(b.peer_id, PROTOCOL)

    trio.run(main, clock=MockClock(autojump_threshold=0))
