"""Services and callers against peers that break the protocol, are slow on purpose, or take all they can get."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.frames import PREFIX_BYTES, FrameKind, Limits, TensorSpec, encode_frame
from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID, RunID
from protocols.ports import Stream, StreamClosedError
from protocols.replies import ErrorReply, Hello
from protocols.schema import encode
from swarm.calls import Answer, CallError, Guard, GuardLimits, Incoming, Pace
from tests.swarm.calling import HELLO, SERVICE, Pair, echo, run, tensor, two_nodes

pytestmark = pytest.mark.trio

REQUEST = encode_frame(FrameKind.REQUEST, "x", [TensorSpec("uint8", (100,))]) + bytes(100)


async def receive_all(stream: Stream) -> bytes:
    """Read until the service hangs up, however it does."""
    received = b""
    try:
        while part := await stream.receive_some(1 << 16):
            received += part
    except StreamClosedError:
        pass
    return received


async def drip(stream: Stream, data: bytes) -> None:
    """Send one byte a second."""
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(1.0)


async def attack(pair: Pair, *sent: bytes) -> bytes:
    """Say `sent` on a new stream and return what is answered until the service hangs up."""
    stream = await pair.open_raw()
    try:
        for part in sent:
            await stream.send_all(part)
        return await receive_all(stream)
    finally:
        await stream.aclose()


def expect_blame(*sent: bytes, reason: bytes) -> None:
    """Check that `sent` is answered with an ERROR giving the reason, counted, and that others are still served."""

    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            answered = await attack(pair, *sent)
            assert b"bad-request" in answered
            assert reason in answered
            assert pair.guard.faults() == {pair.here.peer_id: 1}
            assert (await pair.call("still there")).message == "still there"
            assert pair.guard.bytes_held == 0

    run(main)


def test_what_is_not_a_frame_is_blamed_on_the_sender() -> None:
    expect_blame(b"GET / HTTP/1.1\r\n\r\n", reason=b"not a Murmura frame")


def test_an_oversized_header_is_refused_before_it_is_received() -> None:
    prefix = bytearray(REQUEST[:PREFIX_BYTES])
    prefix[4:8] = (2**31).to_bytes(4, "little")
    expect_blame(HELLO, bytes(prefix), reason=b"over the limit")


def test_an_oversized_body_is_refused_before_it_is_received() -> None:
    expect_blame(
        HELLO,
        encode_frame(FrameKind.REQUEST, "x", [TensorSpec("uint8", (2**28 + 1,))]),
        reason=b"over the limit",
    )


def test_tensors_that_do_not_fill_the_body_are_refused() -> None:
    request = bytearray(REQUEST)
    request[8] += 1
    expect_blame(HELLO, bytes(request), reason=b"do not fill")


def test_a_request_before_the_hello_is_refused() -> None:
    expect_blame(REQUEST, reason=b"where a HELLO was due")


@pytest.mark.parametrize("empty", [b"\x80", b"\x90"])
def test_a_header_full_of_empty_containers_is_refused(empty: bytes) -> None:
    """Each is one byte on the way and 64 bytes when decoded."""
    count = 60_000
    many = b"\xdd" + count.to_bytes(4, "big") + empty * count
    header = b"\x82\xa1m" + many + b"\xa1t\x90"
    prefix = bytearray(encode_frame(FrameKind.REQUEST, None)[:PREFIX_BYTES])
    prefix[4:8] = len(header).to_bytes(4, "little")
    expect_blame(HELLO, bytes(prefix) + header, reason=b"values in one message")


def test_a_hello_may_not_be_long() -> None:
    hello = encode_frame(FrameKind.HELLO, {"software": "x" * 5000})
    expect_blame(hello, reason=b"over the limit of 4096")


def test_a_second_hello_is_refused() -> None:
    expect_blame(HELLO, HELLO, reason=b"where a request was due")


def test_a_hello_with_unknown_keys_is_refused() -> None:
    expect_blame(
        encode_frame(FrameKind.HELLO, {"wire_version": 1, "colour": "red"}), reason=b"unknown key"
    )


def test_a_frame_that_ends_in_the_middle_costs_nothing() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            for cut in range(0, len(HELLO + REQUEST), 7):
                stream = await pair.open_raw()
                await stream.send_all((HELLO + REQUEST)[:cut])
                await stream.aclose()
            await trio.sleep(5.0)
            assert pair.guard.streams_open == 0
            assert pair.guard.bytes_held == 0

    run(main)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans())
def test_any_bytes_leave_the_service_alive(sent: list[bytes], greeted: bool) -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            stream = await pair.open_raw()
            try:
                for part in [HELLO, *sent] if greeted else sent:
                    await stream.send_all(part)
            except StreamClosedError:
                pass
            await stream.aclose()
            assert (await pair.call("still there")).message == "still there"

    run(main)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(HELLO + REQUEST) * 8 - 1))
def test_any_flipped_bit_leaves_the_service_alive(bit: int) -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            frames = bytearray(HELLO + REQUEST)
            frames[bit // 8] ^= 1 << bit % 8
            stream = await pair.open_raw()
            await stream.send_all(bytes(frames))
            await stream.aclose()
            assert (await pair.call("still there")).message == "still there"

    run(main)


def test_one_byte_a_second_is_too_slow_for_a_header() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            stream = await pair.open_raw()
            began_s = trio.current_time()
            with pytest.raises(StreamClosedError):
                await drip(stream, HELLO * 100)
            assert trio.current_time() - began_s < 2 * Pace().grace_s
            assert list(pair.guard.faults()) == [pair.here.peer_id]

    run(main)


def test_one_byte_a_second_is_too_slow_for_a_body() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            channel_bytes = HELLO + encode_frame(
                FrameKind.REQUEST, "x", [TensorSpec("uint8", (1 << 20,))]
            )
            stream = await pair.open_raw()
            await stream.send_all(channel_bytes)
            began_s = trio.current_time()
            with pytest.raises(StreamClosedError):
                await drip(stream, bytes(10_000))
            assert trio.current_time() - began_s < Pace().seconds_for(1 << 20) + 5.0
            assert pair.guard.bytes_held == 0
            assert list(pair.guard.faults()) == [pair.here.peer_id]

    run(main)


def test_a_stream_that_says_nothing_is_closed() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            stream = await pair.open_raw()
            assert b"nothing said" in await receive_all(stream)
            assert pair.guard.streams_open == 0

    run(main)


def test_a_stream_that_asks_nothing_for_long_is_closed_without_blame() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo, idle_s_max=300.0)
            channel = await pair.open_channel()
            began_s = trio.current_time()
            with pytest.raises(StreamClosedError):
                await channel.receive_head()
            assert trio.current_time() - began_s == pytest.approx(300.0)
            assert pair.guard.faults() == {}

    run(main)


def test_a_peer_that_does_not_read_its_answer_is_hung_up_on() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            return Answer(None, [tensor(bytes(1 << 20))])

        async with two_nodes() as pair:
            service = await pair.serve(answer)
            channel = await pair.open_channel()
            await channel.send(FrameKind.REQUEST, None)
            await trio.sleep(Pace().seconds_for(1 << 20) + 5.0)
            assert service.statistics().streams_open == 0
            assert list(pair.guard.faults()) == [pair.here.peer_id]

    run(main)


def test_a_thousand_streams_of_one_peer_leave_room_for_others() -> None:
    async def main() -> None:
        guard = Guard(GuardLimits(streams_per_peer_max=64))
        async with two_nodes(guard=guard) as pair:
            service = await pair.serve(echo)
            streams = [await pair.open_raw() for _ in range(1000)]
            await trio.testing.wait_all_tasks_blocked()
            at_most = guard.limits.strangers_per_origin_max
            assert service.statistics().streams_open == at_most
            assert guard.streams_refused == 1000 - at_most
            answered = await receive_all(streams[-1])
            assert b"too many streams" in answered
            other = pair.network.join(PeerID(b"another peer"))
            stream = await other.open_stream(pair.there.peer_id, protocol_of(SERVICE))
            await stream.send_all(HELLO)
            assert await stream.receive_some(2) == b"mu"

    run(main)


def test_bodies_over_the_budget_wait_for_room_and_then_are_told_busy() -> None:
    async def main() -> None:
        guard = Guard(GuardLimits(bytes_per_peer_max=1_000_000, wait_s_max=30.0))
        release = trio.Event()
        served = 0

        async def answer(incoming: Incoming) -> Answer:
            nonlocal served
            served += 1
            if incoming.message == "hold":
                await release.wait()
            return Answer("done")

        async with two_nodes(guard=guard) as pair:
            await pair.serve(answer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.call, "hold", tensor(bytes(900_000)))
                await trio.sleep(1)
                began_s = trio.current_time()
                with pytest.raises(CallError) as caught:
                    await pair.call("more", tensor(bytes(200_000)))
                assert caught.value.code == "busy"
                assert trio.current_time() - began_s == pytest.approx(30.0, abs=1.0)
                assert served == 1
                assert guard.bytes_held == 900_000
                nursery.start_soon(pair.call, "patient", tensor(bytes(200_000)))
                await trio.sleep(1)
                release.set()
            assert served == 2
            assert guard.bytes_held == 0

    run(main)


def test_a_body_over_the_whole_budget_is_a_bad_request() -> None:
    async def main() -> None:
        guard = Guard(GuardLimits(bytes_per_peer_max=100_000))
        async with two_nodes(guard=guard) as pair:
            await pair.serve(echo)
            with pytest.raises(CallError) as caught:
                await pair.call(None, tensor(bytes(200_000)))
            assert caught.value.code == "bad-request"

    run(main)


RUN, OTHER_RUN = RunID(b"r" * 32), RunID(b"o" * 32)


@pytest.mark.parametrize(
    ("hello", "key", "code"),
    [
        (Hello(run=RUN), b"the key", None),
        (Hello(run=OTHER_RUN), b"the key", "wrong-run"),
        (Hello(run=None), b"the key", "wrong-run"),
        (Hello(run=RUN, wire_version=2), b"the key", "wrong-version"),
        (Hello(run=RUN), b"another key", "wrong-key"),
        (Hello(run=RUN), None, "wrong-key"),
    ],
)
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_strangers_are_refused_with_the_reason(
    hello: Hello, key: bytes | None, code: str | None, size: int
) -> None:
    async def main() -> None:
        async with two_nodes(hello=hello, run_key=key) as pair:

            def accept(peer: PeerID, heard: Hello) -> ErrorReply | None:
                return check_hello(
                    heard,
                    run=RUN,
                    run_key=b"the key",
                    protocol=protocol_of(SERVICE),
                    opener=peer,
                    server=pair.there.peer_id,
                )

            service = await pair.serve(echo, accept=accept)
            if code is None:
                await pair.call("x", tensor(bytes(size)))
                return
            for _ in range(2):
                with pytest.raises(CallError) as caught:
                    await pair.call("x", tensor(bytes(size)))
                assert caught.value.code == code
            assert service.statistics().traffic.calls == 0
            assert pair.caller.statistics().streams_open == 0

    run(main)


WELCOME = encode_frame(FrameKind.HELLO, {})


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        REQUEST,
        WELCOME + REQUEST,
        WELCOME + encode_frame(FrameKind.ERROR, {"code": "because", "reason": ""}),
        WELCOME
        + encode_frame(
            FrameKind.ERROR, encode(ErrorReply(code="busy", reason="")), [TensorSpec("bool", (1,))]
        ),
        WELCOME + encode_frame(FrameKind.REPLY, None, [TensorSpec("uint8", (2**30,))]),
    ],
)
def test_a_service_that_breaks_the_protocol_is_blamed_by_its_caller(reply: bytes) -> None:
    async def main() -> None:
        guard = Guard()
        async with two_nodes(guard=guard, caller_guard=guard) as pair:

            async def lie(stream: Stream) -> None:
                await stream.receive_some(1 << 16)
                await stream.send_all(reply)
                await trio.sleep_forever()

            await pair.there.serve(protocol_of(SERVICE), lie)
            with pytest.raises(RemoteProtocolError) as caught:
                await pair.call("x", deadline_s=1000.0)
            assert caught.value.peer == pair.there.peer_id
            assert guard.faults() == {pair.there.peer_id: 1}
            assert pair.caller.statistics().streams_open == 0

    run(main)


def test_limits_of_a_service_can_be_tighter() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo, limits=Limits(body_bytes_max=1000))
            with pytest.raises(CallError) as caught:
                await pair.call(None, tensor(bytes(1001)))
            assert caught.value.code == "bad-request"

    run(main)
