"""Group averaging over the network in memory: who finishes, with what, and who is blamed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
import trio
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocols.averaging.calls import ChunkCall, MeanCall, decode_call_untrusted, encode_call
from protocols.averaging.messages import (
    Begin,
    Form,
    Have,
    Member,
    Message,
    decode_message_untrusted,
    encode_message,
)
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.ids import PeerID
from swarm.averaging.all_reduce import Averaged, NotFiniteError, RoundAbortedError
from swarm.averaging.codecs import Codec
from swarm.averaging.exchange import AVERAGING_SERVICE, layout_of
from swarm.calls import Answer, CallError, Incoming, Refusal, WireTensor
from swarm.endpoints import Endpoint
from swarm.tensors.wire import from_wire, to_wire
from tests.fakes.signer import SeededSigner
from tests.swarm.averaging.group import LIMITS, SPEC, Group, Node, done, play, vectors_for

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("count", [2, 3, 8])
def test_all_peers_get_the_same_bits_and_they_are_the_mean(count: int) -> None:
    vectors = vectors_for(count)

    async def script(group: Group) -> None:
        results = done(await group.average(vectors))
        expected = torch.stack(vectors).double().mean(0)
        for result in results:
            assert torch.equal(result.mean, results[0].mean)
            assert torch.allclose(result.mean.double(), expected, atol=1e-6)
            assert result.group == tuple(sorted(node.peer_id for node in group.nodes))
            assert result.attempts == 1
        assert not any(node.guard.faults() for node in group.nodes)

    play(count, script)


def test_weights_count() -> None:
    vectors = vectors_for(3)
    weights = [1.0, 2.0, 5.0]

    async def script(group: Group) -> None:
        results = done(await group.average(vectors, weights=weights))
        expected = sum(w * v.double() for w, v in zip(weights, vectors, strict=True)) / sum(weights)
        assert isinstance(expected, torch.Tensor)
        assert torch.allclose(results[0].mean.double(), expected, atol=1e-6)
        by_peer = dict(zip(results[0].group, results[0].weights, strict=True))
        assert [by_peer[node.peer_id] for node in group.nodes] == weights

    play(3, script)


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2), ("int8", 6e-2)]
)
def test_all_hold_the_same_bits_in_every_codec(codec: str, tolerance: float) -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        results = done(await group.average(vectors))
        expected = torch.stack(vectors).mean(0)
        for result in results:
            assert torch.equal(result.mean, results[0].mean)
            assert (result.mean - expected).abs().max() < tolerance

    play(3, script, codec=codec)


def test_rounds_follow_each_other_and_are_counted() -> None:
    async def script(group: Group) -> None:
        for version in range(1, 6):
            vectors = vectors_for(2, seed=version)
            results = done(await group.average(vectors, version=version))
            assert torch.allclose(results[0].mean, torch.stack(vectors).mean(0), atol=1e-6)
            # Each sends half of its numbers, and the mean of the other half.
            assert results[0].bytes_sent == pytest.approx(4 * 20_011, abs=8)
        shown = group.nodes[0].averager.detail()["model"]
        assert shown["rounds"] == 5
        assert shown["healthy"]
        assert (shown["last"]["members"], shown["last"]["attempts"]) == (2, 1)
        assert shown["last"]["bytes_received"] == pytest.approx(4 * 20_011, abs=8)

    play(2, script)


def test_spare_memory_is_used_for_the_mean() -> None:
    spare = torch.empty(20_011)

    async def script(group: Group) -> None:
        here, there = group.nodes
        for version in (1, 2, 3):
            mine, theirs = vectors_for(2, seed=version)

            async def other(version: int = version, theirs: Tensor = theirs) -> None:
                await there.averager.average("model", version, theirs)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                result = await here.averager.average("model", version, mine, spare=spare)
            assert torch.allclose(result.mean, (mine + theirs) / 2, atol=1e-6)
            if result.mean.data_ptr() == spare.data_ptr():
                return
        raise AssertionError("it never was")

    play(2, script)


def test_two_keys_are_averaged_at_once() -> None:
    a, b = vectors_for(2, seed=1), vectors_for(2, 77, seed=2)

    async def script(group: Group) -> None:
        results: dict[str, list[Averaged]] = {}

        async def one(key: str, vectors: list[torch.Tensor]) -> None:
            results[key] = done(await group.average(vectors, key=key))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "a", a)
            nursery.start_soon(one, "b", b)
        assert torch.allclose(results["a"][0].mean, torch.stack(a).mean(0), atol=1e-6)
        assert torch.allclose(results["b"][0].mean, torch.stack(b).mean(0), atol=1e-6)

    play(2, script)


def test_a_peer_without_numbers_for_all_parts_is_enough() -> None:
    """Fewer numbers than members: some parts are empty."""
    vectors = vectors_for(4, 2)

    async def script(group: Group) -> None:
        results = done(await group.average(vectors))
        assert torch.allclose(results[3].mean, torch.stack(vectors).mean(0), atol=1e-6)

    play(4, script)


def test_more_peers_than_a_group_holds_average_in_several_and_mix() -> None:
    vectors = vectors_for(6, 300)

    async def script(group: Group) -> None:
        spread, seen = [torch.stack(vectors).var(0).mean()], set()
        now = vectors
        for version in range(1, 5):
            results = done(await group.average(now, version=version))
            assert [len(result.group) for result in results] == [3] * 6
            seen |= {result.group for result in results}
            now = [result.mean for result in results]
            spread.append(torch.stack(now).var(0).mean())
        assert len(seen) > 2  # drawn anew
        assert spread[-1] < 0.05 * spread[0]
        # Groups of one size keep the mean of all.
        assert torch.allclose(torch.stack(now).mean(0), torch.stack(vectors).mean(0), atol=1e-5)

    play(6, script, spec=dataclasses.replace(SPEC, group_max=3))


# --- peers that vanish ---


@pytest.mark.parametrize("when", ["gathering", "exchanging", "agreed on"])
def test_the_rest_finish_over_the_same_vectors_when_a_peer_vanishes(when: str) -> None:
    vectors = vectors_for(4)

    async def script(group: Group) -> None:
        victim, *others = group.nodes
        survivors = others

        async def watch() -> None:
            await _until(lambda: _reached(victim, when))
            group.scopes[id(victim)].cancel()
            group.kill(victim)

        results: list[Averaged] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            results += done((await group.average(vectors))[1:])
        assert [node.peer_id for node in survivors] == [node.peer_id for node in group.nodes]
        assert len({result.group for result in results}) == 1
        counted = [
            vector
            for vector, signer in zip(vectors, range(1, 5), strict=True)
            if SeededSigner(signer).peer_id in results[0].group
        ]
        assert len(counted) >= 3
        for result in results:
            assert torch.equal(result.mean, results[0].mean)
            assert torch.allclose(result.mean, torch.stack(counted).mean(0), atol=1e-6)

    play(4, script)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def _reached(node: Node, when: str) -> bool:
    """Tell how far a peer has come in its round."""
    held = list(node.averager._held.values())
    match when:
        case "gathering":
            return bool(node.averager._wanted)
        case "exchanging":
            return any(h.exchange is not None and h.count.received for h in held)
        case _:
            return any(h.mean is not None for h in held)


def test_of_two_that_do_not_reach_each_other_one_is_left_out_and_gets_the_mean_all_the_same() -> (
    None
):
    vectors = vectors_for(4)

    async def script(group: Group) -> None:
        one, other, *_ = group.nodes
        group.network.link(one.peer_id, other.peer_id).cut = True
        results = done(await group.average(vectors))
        for result in results:
            assert len(result.left_out) == 1
            assert set(result.left_out) <= {one.peer_id, other.peer_id}
            assert torch.equal(result.mean, results[0].mean)
        counted = [
            v for v, n in zip(vectors, group.nodes, strict=True) if n.peer_id in results[0].group
        ]
        assert torch.allclose(results[0].mean, torch.stack(counted).mean(0), atol=1e-6)

    play(4, script)


def test_a_holder_that_sends_another_mean_is_blamed_and_the_next_one_asked() -> None:
    vectors = vectors_for(4)

    async def script(group: Group) -> None:
        one, other, *rest = group.nodes
        group.network.link(one.peer_id, other.peer_id).cut = True
        liar = min(rest, key=lambda node: node.peer_id)  # asked first
        true = liar.averager.answer

        async def lie(incoming: Incoming) -> Answer:
            answer = await true(incoming)
            if incoming.message["tag"] != "mean":
                return answer
            return Answer(None, (to_wire(from_wire(answer.tensors[0]) + 1.0),))

        await liar.endpoints.open(
            {AVERAGING_SERVICE: Endpoint(lie, lambda peer: liar.averager.limits)}
        )
        results = done(await group.average(vectors))
        assert all(torch.equal(result.mean, results[0].mean) for result in results)
        (left_out,) = [node for node in (one, other) if node.peer_id in results[0].left_out]
        assert left_out.guard.faults() == {liar.peer_id: 1}

    play(4, script)


def test_of_two_peers_both_must_stay() -> None:
    vectors = vectors_for(2)

    async def script(group: Group) -> None:
        victim, _ = group.nodes

        async def watch() -> None:
            await _until(lambda: _reached(victim, "exchanging"))
            group.scopes[id(victim)].cancel()
            group.kill(victim)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            result = (await group.average(vectors))[1]
        assert isinstance(result, RoundAbortedError)
        assert result.begun

    play(2, script)


def test_a_lonely_peer_is_told_so_and_may_try_again() -> None:
    vectors = vectors_for(1)

    async def script(group: Group) -> None:
        for _ in range(2):
            (result,) = await group.average(vectors)
            assert isinstance(result, RoundAbortedError)
            assert (result.reason, result.begun) == ("nobody else came", False)

    play(1, script, spec=dataclasses.replace(SPEC, gather_ceiling_s=0.3))


def test_who_comes_too_late_is_told_and_joins_the_next_round() -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        late = group.nodes.pop()
        done(await group.average(vectors[:2]))
        done(await group.average(vectors[:2], version=2))
        group.nodes.append(late)
        version = 1
        while version < 3:
            with pytest.raises(RoundAbortedError) as raised:
                await late.averager.average("model", version, vectors[2])
            assert (raised.value.reason, raised.value.begun) == ("came too late", False)
            version = max(version + 1, raised.value.newest)
        assert version == 3
        results = done(await group.average(vectors, version=3))
        assert len(results[0].group) == 3

    play(3, script)


# --- what must be refused ---


def test_a_vector_of_another_length_is_in_no_group_with_ours() -> None:
    vectors = [*vectors_for(2), *vectors_for(2, 300)]

    async def script(group: Group) -> None:
        results = done(await group.average(vectors))
        assert [len(result.group) for result in results] == [2, 2, 2, 2]
        assert torch.allclose(results[0].mean, torch.stack(vectors[:2]).mean(0), atol=1e-6)
        assert torch.allclose(results[3].mean, torch.stack(vectors[2:]).mean(0), atol=1e-6)

    play(4, script)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e9, float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    async def script(group: Group) -> None:
        with pytest.raises(LocalProtocolError):
            await group.nodes[0].averager.average("model", 1, torch.ones(3), weight)

    play(1, script)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_has_gone_non_finite_is_sent_to_nobody(value: float) -> None:
    vectors = vectors_for(2)
    vectors[0][7] = value

    async def script(group: Group) -> None:
        with pytest.raises(NotFiniteError):
            await group.nodes[0].averager.average("model", 1, vectors[0])
        assert not group.nodes[0].averager.detail()
        vectors[0][7] = 0.0  # and it may be wanted again
        done(await group.average(vectors))

    play(2, script)


@pytest.mark.parametrize("lie", ["not finite", "too short", "another dtype"])
def test_bad_numbers_are_blamed_on_their_sender_and_the_rest_go_on(lie: str) -> None:
    vectors = vectors_for(4)
    lies = {
        "not finite": lambda values: (to_wire(values * float("nan")),),
        "too short": lambda values: (to_wire(values[1:]),),
        "another dtype": lambda values: (to_wire(values.double()),),
    }

    async def script(group: Group) -> None:
        liar, *honest = group.nodes
        codec = liar.averager._tools.codec
        liar.averager._tools.codec = Lying(codec, lies[lie])
        results = await group.average(vectors)
        for result in done(results[1:]):
            assert liar.peer_id not in result.group
            assert torch.allclose(result.mean, torch.stack(vectors[1:]).mean(0), atol=1e-6)
        assert any(node.guard.faults().get(liar.peer_id) for node in honest)
        assert not any(
            node.guard.faults().get(other.peer_id) for node in honest for other in honest
        )

    play(4, script)


class Lying:
    """A codec that encodes something else."""

    def __init__(self, codec: Codec, lie: Callable[[Tensor], tuple[WireTensor, ...]]) -> None:
        self.name = codec.name
        self.direct = False
        self.specs = codec.specs
        self.encode = lie

    def decode(self, tensors: Sequence[WireTensor], elements: int) -> Tensor:
        return torch.zeros(elements)


def test_an_owner_that_gives_different_sums_is_noticed_and_left_out() -> None:
    vectors = vectors_for(4)

    async def script(group: Group) -> None:
        liar, *honest = group.nodes
        answer = liar.averager.answer

        async def lie(incoming: Incoming) -> Answer:
            true = await answer(incoming)
            if not true.tensors or incoming.peer != honest[0].peer_id:
                return true
            return Answer(None, (to_wire(from_wire(true.tensors[0]) + 1.0),))

        endpoints = {AVERAGING_SERVICE: Endpoint(lie, lambda peer: liar.averager.limits)}
        await liar.endpoints.open(endpoints)
        results = await group.average(vectors)
        for result in done(results[1:]):
            assert torch.equal(result.mean, done(results[1:])[0].mean)
            counted = [vectors[i] for i, n in enumerate(group.nodes) if n.peer_id in result.group]
            assert torch.allclose(result.mean, torch.stack(counted).mean(0), atol=1e-6)

    play(4, script)


def test_a_mean_that_is_held_does_not_change_while_an_attempt_of_a_liar_exchanges_anew() -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        liar, victim, other = group.nodes
        kept_back: list[Have] = []
        is_begun = trio.Event()

        def hold_back(node: Node) -> None:
            send = node.averager._send

            def instead(peer: PeerID, message: Message) -> None:
                if isinstance(message, Have) and peer == victim.peer_id and not is_begun.is_set():
                    kept_back.append(message)
                else:
                    send(peer, message)

            node.averager._send = instead  # type: ignore[method-assign]

        hold_back(liar)
        hold_back(other)
        answer = liar.averager.answer

        async def lie(incoming: Incoming) -> Answer:
            message = incoming.message
            if message["tag"] == "chunk" and message["body"]["exchange"] > 1:
                is_begun.set()
                return Answer(None, [to_wire(from_wire(t) + 7.0) for t in incoming.tensors])
            return await answer(incoming)

        endpoints = {AVERAGING_SERVICE: Endpoint(lie, lambda peer: liar.averager.limits)}
        await liar.endpoints.open(endpoints)

        async def begin_anew() -> None:
            await _until(lambda: _reached(victim, "held") and bool(kept_back))
            (round_id,) = victim.averager._held
            members = sorted(node.peer_id for node in group.nodes)
            begin = Begin(round_id, 2 + members.index(liar.peer_id), (0, 1, 2))
            liar.averager._send(victim.peer_id, begin)
            await is_begun.wait()
            await trio.sleep(0.2)  # the false numbers arrive
            liar.averager._send(victim.peer_id, kept_back[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin_anew)
            results = done(await group.average(vectors))
        expected = torch.stack(vectors).mean(0)
        for result in results:
            assert torch.allclose(result.mean, expected, atol=1e-6)

    play(3, script)


def test_numbers_for_a_round_of_the_past_or_of_others_are_refused() -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        stranger = group.nodes[2]
        done(await group.average(vectors[:2]))
        victim = group.nodes[0]
        rounds = list(victim.averager._held)
        for round_id in [*rounds, b"x" * 32]:
            for call in (ChunkCall(round_id, 1, 0), MeanCall(round_id, 9, 0, 0)):
                with pytest.raises(CallError):
                    await stranger.caller.call(
                        victim.peer_id, AVERAGING_SERVICE, encode_call(call),
                        (to_wire(torch.ones(3)),), deadline_s=5.0,
                    )  # fmt: skip

    play(3, script)


def test_an_invitation_of_a_stranger_is_declined_and_counted() -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        stranger, victim, other = group.nodes
        group.nodes = [victim, other]
        layout = layout_of(vectors[0].numel(), victim.averager._tools.codec, 1000)
        peers = sorted((stranger.peer_id, victim.peer_id))

        async def invite() -> None:
            await _until(lambda: bool(victim.averager._wanted))
            members = tuple(Member(peer, 1.0, 0.0) for peer in peers)
            form = Form("model", 1, layout, 7, 0.0, members)
            bad = Form("model", 1, layout, 7, 0.0, members[::-1])
            for invitation in (form, bad):
                stranger.caller.cast_nowait(
                    victim.peer_id, AVERAGING_SERVICE, encode_message(invitation)
                )

        for node in group.nodes:  # nobody goes to the stranger by itself
            node.averager.found([n.peer_id for n in group.nodes if n is not node])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invite)
            results = done(await group.average(vectors[1:]))
        assert results[0].group == tuple(sorted((victim.peer_id, other.peer_id)))
        assert victim.averager.detail()["model"]["invitations_refused"] >= 1
        assert victim.guard.faults().get(stranger.peer_id) == 1  # for the unsorted one

    play(3, script)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    for data in (raw, {"tag": "form", "body": raw}, {"tag": raw, "body": {}}):
        for decode in (decode_message_untrusted, decode_call_untrusted):
            with contextlib.suppress(RemoteProtocolError):
                decode(data)


@pytest.mark.soak
def test_who_is_always_busy_is_not_sent_the_same_numbers_again_and_again() -> None:
    vectors = vectors_for(3, 9_000)

    async def script(group: Group) -> None:
        liar, *honest = group.nodes
        asked = 0
        answer = liar.averager.answer

        async def busy(incoming: Incoming) -> Answer:
            nonlocal asked
            if incoming.message["tag"] != "chunk":
                return await answer(incoming)
            asked += 1
            raise Refusal("busy", "as always")

        endpoints = {AVERAGING_SERVICE: Endpoint(busy, lambda peer: liar.averager.limits)}
        await liar.endpoints.open(endpoints)
        results = await group.average(vectors)
        for result in done(results[1:]):
            assert result.group == tuple(sorted(node.peer_id for node in honest))
        assert asked < 60  # three chunks, by both, for 1.2 s

    play(3, script, spec=dataclasses.replace(SPEC, exchange_ceiling_s=1.2))


def test_an_answer_that_is_larger_than_a_chunk_is_not_received() -> None:
    vectors = vectors_for(3)

    async def script(group: Group) -> None:
        liar, *honest = group.nodes

        async def lie(incoming: Incoming) -> Answer:
            true = await answer(incoming)
            return Answer(None, [to_wire(torch.zeros(10_000_000))]) if true.tensors else true

        answer = liar.averager.answer
        endpoints = {AVERAGING_SERVICE: Endpoint(lie, lambda peer: LIMITS)}
        await liar.endpoints.open(endpoints)
        results = await group.average(vectors)
        for result in done(results[1:]):
            assert liar.peer_id not in result.group
        received = [
            n.caller.statistics().services[AVERAGING_SERVICE].bytes_received for n in honest
        ]
        assert max(received) < 1_000_000

    play(3, script, codec="int8")
