"""Donors of the checkpoint that a run begins from: those that lie are blamed, the next one is asked, and what is missing is said."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import trio
from torch import Tensor

from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.replies import Hello
from protocols.run import RunSpec
from protocols.schema import decode, encode
from protocols.state_calls import STATE_SERVICE, StateCall, StateReply
from swarm.calls import Answer, Caller, Guard, Incoming, Service, WireTensor
from swarm.hosting.compute import ComputeThread
from swarm.state import initial, transfer
from swarm.state.initial import InitialState
from swarm.state.manifest import NamedSpec
from swarm.state.snapshot import Snapshot
from swarm.state.start_calls import START_SERVICE, StartFile, StartReply
from tests.fakes.host import MemoryNetwork
from tests.fakes.signer import SeededSigner
from tests.swarm.pipeline.test_start import new_run, old_run, specs_of, trained, write_old

pytestmark = pytest.mark.trio

LIMIT_S = 0.4
"""For one call in these tests: a donor that says nothing costs so much."""


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "_CALL_S", LIMIT_S)
    monkeypatch.setattr(initial, "_AGAIN_S", 0.05)
    monkeypatch.setattr(transfer, "_MANIFEST_S", LIMIT_S)
    monkeypatch.setattr(transfer, "_CHUNK_S", LIMIT_S)


class Donor:
    """An honest member with the whole checkpoint on its disk; those below lie in one of its two answers."""

    def __init__(self, state: InitialState, vanish: Callable[[], None]) -> None:
        self.state = state
        self.vanish = vanish

    async def say(self, incoming: Incoming) -> Answer:
        return await self.state.answer(incoming)

    async def give(self, incoming: Incoming) -> Answer:
        return await self.state.snapshots.answer(incoming)


def is_chunk(incoming: Incoming) -> bool:
    return decode(StateCall, incoming.message).chunk is not None


def changed(answer: Answer, change: Callable[[StartFile], StartFile]) -> Answer:
    files = tuple(map(change, decode(StartReply, answer.message).files))
    return dataclasses.replace(answer, message=encode(StartReply(files)))


class FalseBytes(Donor):
    async def give(self, incoming: Incoming) -> Answer:
        answer = await super().give(incoming)
        if not is_chunk(incoming):
            return answer
        (tensor,) = answer.tensors
        raw = bytearray(tensor.data)
        raw[-1] ^= 1
        return dataclasses.replace(answer, tensors=(WireTensor(tensor.spec, memoryview(raw)),))


class AnotherCheckpoint(Donor):
    """Its manifest and its bytes agree: only the hash of the file tells."""

    async def give(self, incoming: Incoming) -> Answer:
        call = decode(StateCall, incoming.message)
        part = call.part.removeprefix("start/")
        tensors = dict(trained(old_run(), int(part[-1])).snapshot())
        name = next(name for name in tensors if name.startswith("parameters/"))
        tensors[name] = tensors[name] + 1.0
        snapshot = Snapshot.of(tensors, part=call.part, version=4)
        data = snapshot.manifest.to_bytes() if call.chunk is None else snapshot.chunk(call.chunk)
        wire = WireTensor(TensorSpec("uint8", (len(data),)), memoryview(bytes(data)))
        return Answer(encode(StateReply(version=4, root=snapshot.manifest.root)), (wire,))


class Oversize(Donor):
    async def say(self, incoming: Incoming) -> Answer:
        def swell(file: StartFile) -> StartFile:
            huge = NamedSpec("parameters/huge", "float64", (1 << 30,))
            return dataclasses.replace(file, tensors=(*file.tensors, huge))

        return changed(await super().say(incoming), swell)


class OtherShapes(Donor):
    async def say(self, incoming: Incoming) -> Answer:
        def reshape(file: StartFile) -> StartFile:
            tensors = tuple(NamedSpec(t.name, "float64", (3,)) for t in file.tensors)
            return dataclasses.replace(file, tensors=tensors)

        return changed(await super().say(incoming), reshape)


class NoReply(Donor):
    async def say(self, incoming: Incoming) -> Answer:
        return Answer({"files": 3})


class SaysNothing(Donor):
    async def say(self, incoming: Incoming) -> Answer:
        await trio.sleep_forever()
        raise AssertionError


class GivesNothing(Donor):
    async def give(self, incoming: Incoming) -> Answer:
        await trio.sleep_forever()
        raise AssertionError


class Vanishes(Donor):
    """After the manifest: in the middle of the transfer."""

    async def give(self, incoming: Incoming) -> Answer:
        if is_chunk(incoming):
            self.vanish()
            await trio.sleep_forever()
        return await super().give(incoming)


LIARS = [FalseBytes, AnotherCheckpoint, Oversize, OtherShapes, NoReply]
ABSENT = [SaysNothing, GivesNothing, Vanishes]


@dataclass(frozen=True)
class Outcome:
    tensors: Mapping[str, Tensor] | None
    """None: it still waits."""
    problem: str
    blamed: list[int]
    left_on_disk: int


Enough: TypeAlias = Callable[[InitialState], bool]


def begin(folder: Path, *kinds: type[Donor], until: Enough = lambda state: False) -> Outcome:
    """Get the first state of stage 0 from these donors, nothing of it being here; end before that when it is enough."""
    run = new_run(write_old(folder / "donor", 0, 1, 2))
    return trio.run(_begin, run, folder, kinds, until)


async def _begin(
    run: RunSpec, folder: Path, kinds: tuple[type[Donor], ...], until: Enough
) -> Outcome:
    assert run.start is not None
    ids = [SeededSigner(number).peer_id for number in range(1, len(kinds) + 1)]
    async with (
        MemoryNetwork.open() as network,
        ComputeThread("codec", queue_max=64) as codec,
        trio.open_nursery() as nursery,
    ):
        guard = Guard()
        caller = Caller(network.join(SeededSigner(0).peer_id), hello=Hello(), guard=guard)
        await nursery.start(caller.run)
        for peer, kind in zip(ids, kinds, strict=True):
            held = InitialState(
                run.start, folder / "donor" / str(run.run_id), caller, codec, parts=2
            )
            await serve(network, peer, kind(held, lambda peer=peer: network.crash(peer)))  # type: ignore[misc]
        here = folder / "here" / str(run.run_id)
        state = InitialState(run.start, here, caller, codec, parts=2)
        state.members = lambda: ids
        tensors = await _get(state, run, until)
        nursery.cancel_scope.cancel()
    files = len(list(here.rglob("*.safetensors")))
    return Outcome(tensors, state.problem, [ids.index(peer) for peer in guard.faults()], files)


async def _get(state: InitialState, run: RunSpec, until: Enough) -> Mapping[str, Tensor] | None:
    found: list[Mapping[str, Tensor]] = []
    with trio.fail_after(20.0):
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while not until(state):  # noqa: ASYNC110 - it is looked at from outside
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            found.append(await state.tensors(specs_of(run, 0)))
            nursery.cancel_scope.cancel()
    return found[0] if found else None


def says_who_was_asked(state: InitialState) -> bool:
    return ", and " in state.problem


async def serve(network: MemoryNetwork, peer: PeerID, donor: Donor) -> None:
    host = network.join(peer)
    for service, answer in ((START_SERVICE, donor.say), (STATE_SERVICE, donor.give)):
        await Service(host, service, answer=answer, accept=lambda peer, hello: None).start()


def is_right(outcome: Outcome) -> bool:
    """Compare with what the old run's stages held: stage 0 of two has the first tensors of three."""
    expected = {
        name: tensor
        for stage in range(3)
        for name, tensor in trained(old_run(), stage).snapshot().items()
    }
    return outcome.tensors is not None and all(
        torch.equal(tensor, expected[name]) for name, tensor in outcome.tensors.items()
    )


def test_a_node_that_has_nothing_gets_all_of_it_from_one_that_has(tmp_path: Path) -> None:
    outcome = begin(tmp_path, Donor)
    assert is_right(outcome)
    assert (outcome.problem, outcome.blamed) == ("", [])


@pytest.mark.parametrize("liar", LIARS)
def test_a_donor_that_lies_is_blamed_and_the_next_one_asked(
    tmp_path: Path, liar: type[Donor]
) -> None:
    outcome = begin(tmp_path, liar, Donor)
    assert is_right(outcome)
    assert (outcome.problem, outcome.blamed) == ("", [0])


@pytest.mark.parametrize("absent", ABSENT)
def test_a_donor_that_falls_silent_or_vanishes_is_not_blamed_and_the_next_one_asked(
    tmp_path: Path, absent: type[Donor]
) -> None:
    outcome = begin(tmp_path, absent, Donor)
    assert is_right(outcome)
    assert (outcome.problem, outcome.blamed) == ("", [])


def test_two_liars_before_an_honest_donor_change_nothing(tmp_path: Path) -> None:
    outcome = begin(tmp_path, AnotherCheckpoint, GivesNothing, FalseBytes, Donor)
    assert is_right(outcome)
    assert outcome.blamed == [0, 2]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (AnotherCheckpoint, "(1 of them sent what is not so)"),
        (FalseBytes, "(1 of them sent what is not so)"),
        (SaysNothing, "(1 of them did not answer)"),
        (GivesNothing, "none of 1 other members gave it"),
    ],
)
def test_what_is_missing_is_said_when_no_donor_is_left(
    tmp_path: Path, kind: type[Donor], why: str
) -> None:
    outcome = begin(tmp_path, kind, until=says_who_was_asked)
    assert outcome.tensors is None
    assert "at step 4 is" in outcome.problem
    assert "and none of 1 other members gave it" in outcome.problem
    assert why in outcome.problem
    assert outcome.left_on_disk == 0, "what was false is not kept"


def test_who_is_alone_says_so(tmp_path: Path) -> None:
    outcome = begin(tmp_path, until=says_who_was_asked)
    assert "there is no other member to fetch it from" in outcome.problem


def test_a_liar_is_not_fetched_from_again(tmp_path: Path) -> None:
    said = given = 0

    class Counted(AnotherCheckpoint):
        async def say(self, incoming: Incoming) -> Answer:
            nonlocal said
            said += 1
            return await super().say(incoming)

        async def give(self, incoming: Incoming) -> Answer:
            nonlocal given
            given += not is_chunk(incoming)
            return await super().give(incoming)

    begin(tmp_path, Counted, until=lambda state: said > 3)
    assert given == 1


def test_a_search_for_the_list_that_liars_make_long_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched_in: list[int] = []

    def find_list(*args: Any) -> Any:
        searched_in.append(threading.get_ident())
        return real(*args)

    real = initial.find_list
    monkeypatch.setattr(initial, "find_list", find_list)
    assert is_right(begin(tmp_path, Donor))
    assert searched_in
    assert threading.get_ident() not in searched_in, "not on the event loop"
