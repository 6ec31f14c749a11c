"""What every Host does. Each implementation passes this suite: subclass HostContract and say how to make two hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from protocols.ids import PeerID
from protocols.ports import Host, PeerUnreachableError, Stream, StreamClosedError
from tests.fakes.signer import SeededSigner

PROTOCOL = "/murmura/contract/1"
DEADLINE_S = 20.0
Check = Callable[[Host, Host], Awaitable[None]]


class HostContract:
    """Two hosts that can dial each other, not yet connected, fresh for every test."""

    def two_hosts(self) -> AbstractAsyncContextManager[tuple[Host, Host]]:
        raise NotImplementedError

    def run(self, check: Check) -> None:
        async def main() -> None:
            with trio.fail_after(DEADLINE_S):
                async with self.two_hosts() as (a, b):
                    await check(a, b)

        trio.run(main, **self.run_options())

    def run_options(self) -> dict[str, Any]:
        return {}

    def test_connecting_by_address_says_who_answered(self) -> None:
        async def check(a: Host, b: Host) -> None:
            (address, *_) = b.addresses()
            assert address.endswith(f"/p2p/{b.peer_id}")
            assert await a.connect(address) == b.peer_id
            assert list(await a.peers()) == [b.peer_id]
            while list(await b.peers()) != [a.peer_id]:  # noqa: ASYNC110 - the dialer knows first
                await trio.sleep(0.005)

        self.run(check)

    def test_after_disconnecting_neither_lists_the_other(self) -> None:
        async def check(a: Host, b: Host) -> None:
            await connect(a, b)
            await a.disconnect(b.peer_id)
            await until_empty(a)
            await until_empty(b)

        self.run(check)

    def test_a_peer_that_nobody_knows_is_unreachable(self) -> None:
        async def check(a: Host, b: Host) -> None:
            with pytest.raises(PeerUnreachableError) as caught:
                await a.open_stream(SeededSigner(99).peer_id, PROTOCOL)
            assert caught.value.peer == SeededSigner(99).peer_id

        self.run(check)

    def test_an_address_of_nobody_is_unreachable(self) -> None:
        async def check(a: Host, b: Host) -> None:
            nobody = b.addresses()[0].rpartition("/p2p/")[0] + f"/p2p/{SeededSigner(99).peer_id}"
            with pytest.raises(PeerUnreachableError):
                await a.connect(nobody)

        self.run(check)

    def test_a_protocol_that_is_not_served_is_refused(self) -> None:
        async def check(a: Host, b: Host) -> None:
            await connect(a, b)
            with pytest.raises((PeerUnreachableError, StreamClosedError)):
                await exchange_one_byte(a, b.peer_id)

        self.run(check)

    def test_both_ends_of_a_stream_know_who_is_at_the_other(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                assert there.peer == a.peer_id
                assert here.peer == b.peer_id

        self.run(check)

    def test_a_served_stream_says_where_it_comes_from(self) -> None:
        """As coarsely as addresses are given out: what is bounded by it costs its sender something."""

        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (_, there):
                assert there.origin
                assert "/" not in there.origin

        self.run(check)

    def test_bytes_arrive_whole_and_in_order_in_both_directions(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                data = bytes(range(256)) * 4096  # 1 MiB: more than any buffer on the way
                buffers = memoryview(bytearray(len(data))), memoryview(bytearray(len(data)))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.send_all, data)
                    nursery.start_soon(there.send_all, memoryview(data)[::-1].tobytes())
                    nursery.start_soon(here.receive_into, buffers[0])
                    nursery.start_soon(there.receive_into, buffers[1])
                assert buffers[0] == data[::-1]
                assert buffers[1] == data

        self.run(check)

    def test_receive_some_returns_no_more_than_asked(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                await here.send_all(b"abcdef")
                received = b""
                while len(received) < 6:
                    part = await there.receive_some(2)
                    assert 1 <= len(part) <= 2
                    received += part
                assert received == b"abcdef"

        self.run(check)

    def test_a_finished_stream_gives_what_was_sent_and_then_nothing(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                await here.send_all(b"last words")
                await here.aclose()
                buffer = memoryview(bytearray(10))
                await there.receive_into(buffer)
                assert bytes(buffer) == b"last words"
                assert await there.receive_some(1) == b""

        self.run(check)

    def test_receiving_into_a_buffer_fails_when_the_stream_ends_first(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                await here.send_all(b"half")
                await here.aclose()
                with pytest.raises(StreamClosedError):
                    await there.receive_into(memoryview(bytearray(8)))

        self.run(check)

    def test_an_idle_stream_is_readable_once_something_came_or_the_peer_left(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                assert not there.readable()
                await here.send_all(b"x")
                await until(there.readable)
                assert await there.receive_some(10) == b"x"
                assert not there.readable()
                await here.aclose()
                await until(there.readable)

        self.run(check)

    def test_closing_twice_is_safe_and_a_closed_stream_says_so(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, _):
                await here.aclose()
                await here.aclose()
                with pytest.raises(StreamClosedError):
                    await here.send_all(b"x")
                with pytest.raises(StreamClosedError):
                    await here.receive_some(1)

        self.run(check)

    def test_closing_wakes_up_who_waits_for_bytes(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, _):

                async def wait_for_bytes() -> None:
                    with pytest.raises(StreamClosedError):
                        await here.receive_some(1)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_for_bytes)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await here.aclose()

        self.run(check)

    def test_a_sender_waits_while_the_peer_does_not_read(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async with stream_between(a, b) as (here, there):
                with trio.move_on_after(1.0) as scope:
                    await here.send_all(bytes(64 << 20))
                assert scope.cancelled_caught
                assert there.readable()

        self.run(check)

    def test_a_handler_that_fails_closes_its_stream_and_nothing_else(self) -> None:
        async def check(a: Host, b: Host) -> None:
            async def fail(stream: Stream) -> None:
                raise RuntimeError("a bug in this handler")

            await b.serve(PROTOCOL, fail)
            await connect(a, b)
            for _ in range(2):
                with pytest.raises(StreamClosedError):
                    await exchange_one_byte(a, b.peer_id)

        self.run(check)

    def test_a_notice_reaches_subscribers_of_its_topic_only_and_names_its_author(self) -> None:
        async def check(a: Host, b: Host) -> None:
            await connect(a, b)
            async with (
                a.subscribe("other"),
                a.subscribe("news") as own,
                b.subscribe("news") as notices,
            ):
                await publish_until_heard(a, "news", b"it rains", notices)
                with trio.move_on_after(0.1) as scope:
                    await anext(own)
                assert scope.cancelled_caught, "nobody hears their own notices"

        self.run(check)


class Served:
    """A handler that hands its streams to the test and keeps them open."""

    def __init__(self) -> None:
        self._arrived, self._streams = trio.open_memory_channel[Stream](10)

    async def __call__(self, stream: Stream) -> None:
        await self._arrived.send(stream)
        await trio.sleep_forever()

    async def stream(self) -> Stream:
        return await self._streams.receive()


async def connect(a: Host, b: Host) -> PeerID:
    return await a.connect(b.addresses()[0])


@asynccontextmanager
async def stream_between(a: Host, b: Host) -> AsyncIterator[tuple[Stream, Stream]]:
    """Open one stream and yield both its ends; ours is closed at the end, theirs by its handler."""
    served = Served()
    await b.serve(PROTOCOL, served)
    await connect(a, b)
    here = await a.open_stream(b.peer_id, PROTOCOL)
    await here.send_all(b"!")  # libp2p settles on the protocol with the first bytes
    try:
        there = await served.stream()
        await there.receive_into(memoryview(bytearray(1)))
        yield here, there
    finally:
        await here.aclose()


async def exchange_one_byte(host: Host, peer: PeerID) -> None:
    stream = await host.open_stream(peer, PROTOCOL)
    try:
        await stream.send_all(b"x")
        await stream.receive_into(memoryview(bytearray(1)))
    finally:
        await stream.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something the other end is about to cause; the test's deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - the port offers nothing to wait on
        await trio.sleep(0.005)


async def until_empty(host: Host) -> None:
    while await host.peers():  # noqa: ASYNC110 - the port offers nothing to wait on
        await trio.sleep(0.005)


async def publish_until_heard(author: Host, topic: str, data: bytes, notices: Any) -> None:
    """Publish again and again: a subscription takes a moment to become known to other peers."""
    heard = trio.Event()

    async def publish() -> None:
        while not heard.is_set():
            await author.publish(topic, data)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        notice = await anext(notices)
        heard.set()
    assert (notice.peer, notice.data) == (author.peer_id, data)
