"""Calls and casts between two nodes that keep to the protocol."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from protocols.errors import RemoteProtocolError
from protocols.ids import RunID
from protocols.ports import PeerUnreachableError, StreamClosedError
from protocols.replies import Hello
from swarm.calls import Answer, CallError, CallTimeoutError, Incoming, Rates, Refusal
from swarm.calls.channel import allocate, recycle
from tests.fakes.host import MemoryStream
from tests.swarm.calling import SERVICE, echo, run, tensor, two_nodes

pytestmark = pytest.mark.trio


def test_a_call_returns_the_answer_with_its_tensors() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            small = tensor(bytes(range(24)), "float32", (2, 3))
            large = tensor(b"ab" * (1 << 20), "bfloat16", (1 << 20,))
            empty = tensor(b"", "int64", (0, 5))
            answer = await pair.call({"a": [1, b"x"]}, small, large, empty)
            assert answer.message == {"a": [1, b"x"]}
            assert [each.spec for each in answer.tensors] == [small.spec, large.spec, empty.spec]
            assert [bytes(each.data) for each in answer.tensors] == [small.data, large.data, b""]
            assert not any(each.data.readonly for each in answer.tensors)

    run(main)


def test_the_service_learns_who_asks_and_for_which_run() -> None:
    async def main() -> None:
        hello = Hello(run=RunID(bytes(32)), role="trainer")
        heard: list[Incoming] = []

        async def answer(incoming: Incoming) -> Answer:
            heard.append(incoming)
            return Answer()

        async with two_nodes(hello=hello) as pair:
            await pair.serve(answer)
            await pair.call("x")
            assert [(each.peer, each.hello, each.message) for each in heard] == [
                (pair.here.peer_id, hello, "x")
            ]

    run(main)


def test_calls_one_after_the_other_share_a_stream() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            service = await pair.serve(echo)
            for number in range(5):
                assert (await pair.call(number)).message == number
            assert service.statistics().traffic.streams_opened == 1

    run(main)


def test_calls_at_once_take_a_stream_each_up_to_the_limit_and_then_wait() -> None:
    async def main() -> None:
        async with two_nodes(streams_per_peer_max=3) as pair:
            gate, busy = trio.Event(), 0

            async def answer(incoming: Incoming) -> Answer:
                nonlocal busy
                busy += 1
                await gate.wait()
                return Answer(incoming.message)

            service = await pair.serve(answer)
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(pair.call, number)
                await trio.sleep(1)
                assert busy == 3
                gate.set()
            assert service.statistics().traffic.calls == 10
            assert service.statistics().traffic.streams_opened == 3

    run(main)


def test_a_stream_of_another_service_is_closed_when_all_are_taken() -> None:
    async def main() -> None:
        async with two_nodes(streams_per_peer_max=1) as pair:
            await pair.serve(echo)
            await pair.call(1)
            with pytest.raises(PeerUnreachableError):
                await pair.caller.call(pair.there.peer_id, "other", None, deadline_s=5.0)
            assert (await pair.call(2)).message == 2

    run(main)


def test_a_refusal_names_its_code_and_leaves_the_stream_usable() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            if incoming.message == "late":
                raise Refusal("step-passed", "step 3 is committed", retry_after_s=2.0)
            return Answer("done")

        async with two_nodes() as pair:
            service = await pair.serve(answer)
            with pytest.raises(CallError) as caught:
                await pair.call("late")
            error = caught.value
            assert (error.peer, error.code, error.reason, error.retry_after_s) == (
                pair.there.peer_id,
                "step-passed",
                "step 3 is committed",
                2.0,
            )
            assert (await pair.call("in time")).message == "done"
            assert service.statistics().traffic.streams_opened == 1
            assert service.statistics().traffic.failures == 1

    run(main)


def test_a_bad_request_is_answered_and_counted_against_its_sender() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            raise RemoteProtocolError("a stage is a number")

        async with two_nodes() as pair:
            await pair.serve(answer)
            with pytest.raises(CallError) as caught:
                await pair.call()
            assert (caught.value.code, caught.value.reason) == (
                "bad-request",
                "a stage is a number",
            )
            assert pair.guard.faults() == {pair.here.peer_id: 1}

    run(main)


def test_a_bug_in_the_service_is_its_own_fault_and_it_lives_on() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            if incoming.message == 1:
                raise ZeroDivisionError
            return Answer("fine")

        async with two_nodes() as pair:
            await pair.serve(answer)
            with pytest.raises(CallError) as caught:
                await pair.call(1)
            assert caught.value.code == "failed"
            assert "Zero" not in caught.value.reason, "our insides are not for strangers"
            assert (await pair.call(2)).message == "fine"
            assert pair.guard.faults() == {}

    run(main)


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            await trio.sleep_forever()
            raise AssertionError

        async with two_nodes() as pair:
            await pair.serve(answer, answer_s_max=30.0)
            began_s = trio.current_time()
            with pytest.raises(CallError) as caught:
                await pair.call()
            assert caught.value.code == "failed"
            assert trio.current_time() - began_s == pytest.approx(30.0)

    run(main)


def test_a_call_ends_at_its_deadline_and_its_stream_with_it() -> None:
    async def main() -> None:
        first = True

        async def answer(incoming: Incoming) -> Answer:
            nonlocal first
            if first:
                first = False
                await trio.sleep(20.0)
            return Answer(incoming.message)

        async with two_nodes() as pair:
            await pair.serve(answer)
            began_s = trio.current_time()
            with pytest.raises(CallTimeoutError):
                await pair.call("slow", deadline_s=3.0)
            assert trio.current_time() - began_s == pytest.approx(3.0)
            # The late answer to the first call must never be taken for the answer to the second.
            assert (await pair.call("quick")).message == "quick"
            assert pair.caller.statistics().streams_open == 1

    run(main)


def test_a_cancelled_call_closes_its_stream() -> None:
    async def main() -> None:
        async def answer(incoming: Incoming) -> Answer:
            await trio.sleep_forever()
            raise AssertionError

        async with two_nodes() as pair:
            await pair.serve(answer)
            with trio.move_on_after(1.0):
                await pair.call()
            assert pair.caller.statistics().streams_open == 0

    run(main)


def test_a_peer_that_crashes_while_it_answers_breaks_the_call() -> None:
    async def main() -> None:
        async with two_nodes() as pair:

            async def answer(incoming: Incoming) -> Answer:
                pair.network.crash(pair.there.peer_id)
                return Answer()

            await pair.serve(answer)
            with pytest.raises(StreamClosedError):
                await pair.call()
            with pytest.raises(PeerUnreachableError):
                await pair.call()
            assert pair.caller.statistics().services[SERVICE].failures == 2

    run(main)


def test_a_stream_that_died_while_idle_is_replaced_unnoticed() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            await pair.call(1)
            pair.network.reset(pair.here.peer_id, pair.there.peer_id)
            assert (await pair.call(2)).message == 2

    run(main)


def test_an_idle_stream_that_dies_unseen_is_replaced_where_the_peer_can_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryStream, "readable", lambda stream: False)

    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            await pair.call(1)
            pair.network.reset(pair.here.peer_id, pair.there.peer_id)
            assert (await pair.call(2)).message == 2
            pair.network.crash(pair.there.peer_id)
            with pytest.raises(PeerUnreachableError):
                await pair.call(3)
            assert pair.caller.statistics().streams_open == 0

    run(main)


def test_idle_streams_are_closed_after_a_while() -> None:
    async def main() -> None:
        async with two_nodes(idle_s_max=60.0) as pair, trio.open_nursery() as nursery:
            await nursery.start(pair.caller.run)
            service = await pair.serve(echo)
            await pair.call(1)
            assert service.statistics().streams_open == 1
            await trio.sleep(90.0)
            assert pair.caller.statistics().streams_open == 0
            assert service.statistics().streams_open == 0
            nursery.cancel_scope.cancel()

    run(main)


class Heard:
    """An `answer` that keeps the messages it was given."""

    def __init__(self) -> None:
        self.messages: list[object] = []
        self.may_read = trio.Event()

    async def __call__(self, incoming: Incoming) -> Answer:
        await self.may_read.wait()
        self.messages.append(incoming.message)
        return Answer()


def test_casts_arrive_in_order_over_one_stream() -> None:
    async def main() -> None:
        async with two_nodes() as pair, trio.open_nursery() as nursery:
            await nursery.start(pair.caller.run)
            heard = Heard()
            heard.may_read.set()
            service = await pair.serve(heard)
            for number in range(20):
                await pair.caller.cast(pair.there.peer_id, SERVICE, number)
            await trio.sleep(1)
            assert heard.messages == list(range(20))
            assert service.statistics().traffic.casts == 20
            assert service.statistics().traffic.streams_opened == 1
            nursery.cancel_scope.cancel()

    run(main)


def test_casting_never_waits_and_drops_what_a_deaf_peer_does_not_read() -> None:
    async def main() -> None:
        async with two_nodes(casts_waiting_max=10) as pair, trio.open_nursery() as nursery:
            await nursery.start(pair.caller.run)
            heard = Heard()
            await pair.serve(heard)
            began_s = trio.current_time()
            for _ in range(1000):
                await pair.caller.cast(pair.there.peer_id, SERVICE, "x" * 20_000)
            assert trio.current_time() == began_s
            await trio.sleep(60.0)
            traffic = pair.caller.statistics().services[SERVICE]
            assert traffic.casts + traffic.casts_dropped == 1000
            assert traffic.casts_dropped > 980
            assert pair.caller.statistics().casts_waiting == 0
            nursery.cancel_scope.cancel()

    run(main)


def test_casts_to_a_peer_that_is_gone_are_dropped_and_later_ones_arrive() -> None:
    async def main() -> None:
        async with two_nodes() as pair, trio.open_nursery() as nursery:
            await nursery.start(pair.caller.run)
            await pair.caller.cast(pair.there.peer_id, SERVICE, "before it serves")
            await trio.sleep(1)
            heard = Heard()
            heard.may_read.set()
            await pair.serve(heard)
            await pair.caller.cast(pair.there.peer_id, SERVICE, "after")
            await trio.sleep(1)
            assert heard.messages == ["after"]
            assert pair.caller.statistics().services[SERVICE].casts_dropped == 1
            nursery.cancel_scope.cancel()

    run(main)


def test_both_sides_count_the_same_bytes() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            service = await pair.serve(echo)
            for size in (0, 1000, 300_000):
                await pair.call("x", tensor(bytes(size)))
            ours, theirs = pair.caller.statistics().services[SERVICE], service.statistics().traffic
            assert (ours.bytes_sent, ours.bytes_received) == (
                theirs.bytes_received,
                theirs.bytes_sent,
            )
            assert ours.calls == theirs.calls == 3
            assert ours.bytes_sent > 301_000

    run(main)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_rate_limit_holds_over_all_calls_together(direction: str) -> None:
    async def main() -> None:
        limit = Rates(
            upload_bytes_per_s=1e5 if direction == "up" else None,
            download_bytes_per_s=1e5 if direction == "down" else None,
        )
        async with two_nodes(rates=limit) as pair:
            await pair.serve(echo)
            began_s = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(pair.call, None, tensor(bytes(1_000_000)))
            assert 19.0 < trio.current_time() - began_s < 22.0
            assert pair.guard.faults() == {}

    run(main)


def test_a_slow_but_steady_link_is_no_fault() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            pair.network.link(pair.here.peer_id, pair.there.peer_id).bytes_per_s = 20_000.0
            await pair.call(None, tensor(bytes(4_000_000)), deadline_s=1000.0)
            assert trio.current_time() > 300.0
            assert pair.guard.faults() == {}

    run(main)


def test_calls_need_no_torch() -> None:
    # A node without torch still answers public questions, and READY comes before torch is imported.
    code = "import sys, swarm.calls; print([m for m in ('torch', 'numpy', 'asyncio') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_an_answer_is_received_where_the_caller_wants_it_or_not_at_all() -> None:
    async def main() -> None:
        async with two_nodes() as pair:
            await pair.serve(echo)
            place = memoryview(bytearray(5))
            answer = await pair.caller.call(
                pair.there.peer_id, SERVICE, None, (tensor(b"hello"),), deadline_s=5.0, into=[place]
            )
            assert bytes(place) == b"hello"
            assert answer.tensors[0].data.obj is place.obj
            with pytest.raises(RemoteProtocolError):
                await pair.caller.call(
                    pair.there.peer_id, SERVICE, None, (tensor(b"longer"),), deadline_s=5.0, into=[place]
                )  # fmt: skip

    run(main)


def test_memory_given_back_is_used_for_the_next_tensor_of_its_size() -> None:
    first = allocate(2 << 20)
    recycle(first)
    assert allocate(2 << 20) is first
    assert allocate(2 << 20) is not first
    small = allocate(10)
    recycle(small)
    assert allocate(10) is not small
