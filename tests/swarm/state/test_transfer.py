"""What a newcomer refuses of its donors, and whom it blames for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
import torch
import trio

from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.replies import Hello
from protocols.schema import encode
from protocols.state_calls import STATE_SERVICE, StateCall, StateReply, state_call_untrusted
from swarm.calls import Answer, Caller, Guard, Incoming, Refusal, Service, WireTensor
from swarm.hosting.compute import ComputeThread
from swarm.state import transfer
from swarm.state.snapshot import Snapshot, expected_specs
from swarm.state.transfer import Fetch, FetchedState, FetchError
from tests.fakes.host import MemoryNetwork
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio

PART = "stage/0"
TENSORS = {"a": torch.arange(4000, dtype=torch.float32), "step": torch.tensor(3)}
SNAPSHOT = Snapshot.of(TENSORS, part=PART, version=3, chunk_bytes=1000)
OTHER = Snapshot.of(TENSORS | {"a": -TENSORS["a"]}, part=PART, version=3, chunk_bytes=1000)

Donor = Callable[[StateCall], Answer]


def bytes_of(data: bytes | memoryview, dtype: str = "uint8") -> WireTensor:
    size = len(data) if dtype == "uint8" else len(data) // 4
    return WireTensor(TensorSpec(dtype, (size,)), memoryview(bytes(data)))


def honest(call: StateCall, snapshot: Snapshot = SNAPSHOT) -> Answer:
    manifest = snapshot.manifest
    reply = encode(StateReply(version=manifest.version, root=manifest.root))
    data = manifest.to_bytes() if call.chunk is None else snapshot.chunk(call.chunk)
    return Answer(reply, (bytes_of(data),))


def with_another_state(call: StateCall) -> Answer:
    return honest(call, OTHER)


def false_chunks(call: StateCall) -> Answer:
    answer = honest(call)
    if call.chunk is None:
        return answer
    return dataclasses.replace(answer, tensors=(bytes_of(OTHER.chunk(call.chunk)),))


def short_chunks(call: StateCall) -> Answer:
    answer = honest(call)
    if call.chunk is None:
        return answer
    return dataclasses.replace(answer, tensors=(bytes_of(SNAPSHOT.chunk(call.chunk)[:-4]),))


def false_manifest(call: StateCall) -> Answer:
    return dataclasses.replace(honest(call), tensors=(bytes_of(OTHER.manifest.to_bytes()),))


def another_part(call: StateCall) -> Answer:
    return honest(call, Snapshot.of(TENSORS, part="stage/1", version=3, chunk_bytes=1000))


def another_version(call: StateCall) -> Answer:
    return honest(call, Snapshot.of(TENSORS, part=PART, version=4, chunk_bytes=1000))


def two_tensors(call: StateCall) -> Answer:
    answer = honest(call)
    return dataclasses.replace(answer, tensors=(*answer.tensors, *answer.tensors))


def floats(call: StateCall) -> Answer:
    answer = honest(call)
    return dataclasses.replace(answer, tensors=(bytes_of(bytes(16), "float32"),))


def no_reply(call: StateCall) -> Answer:
    return dataclasses.replace(honest(call), message={"root": 3})


def fetch(*donors: Donor) -> tuple[FetchedState | None, list[int]]:
    """Fetch from these donors; return what came of it, and which of them were blamed."""

    async def main() -> tuple[FetchedState | None, list[int]]:
        async with (
            MemoryNetwork.open() as network,
            ComputeThread("codec", queue_max=64) as codec,
            trio.open_nursery() as nursery,
        ):
            ids = [SeededSigner(number).peer_id for number in range(1, len(donors) + 1)]
            for peer, donor in zip(ids, donors, strict=True):
                await serve(network, peer, donor)
            guard = Guard()
            caller = Caller(network.join(SeededSigner(0).peer_id), hello=Hello(), guard=guard)
            await nursery.start(caller.run)
            wanted = Fetch(caller, codec, expected_specs(TENSORS), part=PART, version=3)
            state: FetchedState | None = None
            try:
                with trio.fail_after(20.0):
                    state = await wanted.run(ids)
            except FetchError:
                pass
            nursery.cancel_scope.cancel()
        return state, [ids.index(peer) for peer in guard.faults()]

    return trio.run(main)


async def serve(network: MemoryNetwork, peer: PeerID, donor: Donor) -> None:
    async def answer(incoming: Incoming) -> Answer:
        return donor(state_call_untrusted(StateCall, incoming.message))

    served: Callable[[Incoming], Awaitable[Answer]] = answer
    host = network.join(peer)
    await Service(host, STATE_SERVICE, answer=served, accept=lambda peer, hello: None).start()


def is_right(state: FetchedState | None) -> bool:
    return (
        state is not None
        and state.root == SNAPSHOT.manifest.root
        and torch.equal(state.tensors["a"], TENSORS["a"])
    )


def test_honest_donors_share_the_work() -> None:
    state, blamed = fetch(honest, honest)
    assert is_right(state)
    assert blamed == []


@pytest.mark.parametrize("donor", [false_chunks, short_chunks])
def test_a_chunk_with_another_hash_is_refused_and_its_donor_blamed(donor: Donor) -> None:
    state, blamed = fetch(donor, honest)
    assert is_right(state)
    assert blamed == [0]
    assert fetch(donor) == (None, [0])


def test_a_donor_that_holds_another_state_is_not_blamed_for_it() -> None:
    """It may be the honest one: who sent the manifest may have lied. The root is compared with what a record commits."""
    state, blamed = fetch(honest, with_another_state)
    assert is_right(state)
    assert blamed == []


@pytest.mark.parametrize("donor", [false_manifest, two_tensors, floats, no_reply])
def test_a_manifest_that_is_not_what_it_says_is_refused_and_its_donor_blamed(donor: Donor) -> None:
    state, blamed = fetch(donor, honest)
    assert is_right(state)
    assert 0 in blamed
    assert 1 not in blamed


@pytest.mark.parametrize("donor", [another_part, another_version])
def test_the_manifest_of_something_else_is_passed_over(donor: Donor) -> None:
    state, blamed = fetch(donor, honest)
    assert is_right(state)
    assert state is not None
    assert blamed == []


def test_a_state_of_other_tensors_is_not_taken() -> None:
    larger = Snapshot.of({"b": torch.zeros(9)}, part=PART, version=3)
    assert fetch(lambda call: honest(call, larger)) == (None, [])


def in_single_bytes(call: StateCall) -> Answer:
    return honest(call, Snapshot.of(TENSORS, part=PART, version=3, chunk_bytes=1))


def test_a_state_cut_into_single_bytes_is_refused_and_its_donor_blamed() -> None:
    state, blamed = fetch(in_single_bytes, honest)
    assert is_right(state)
    assert blamed == [0]


def test_a_donor_that_is_busy_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_STALLED_S", 0.2)

    def busy(call: StateCall) -> Answer:
        if call.chunk is not None:
            raise Refusal("busy", "come again", 3600.0)
        return honest(call)

    assert fetch(busy) == (None, [])
    assert is_right(fetch(busy, honest)[0])
