"""The shell of a gossip peer on the in-memory network: what it takes, and what it refuses from whoever is in the run."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from torch import Tensor

from node.identity import verify_signature
from protocols.frames import Limits
from protocols.gossip.messages import (
    Leaving,
    ModelOffer,
    OfferWanted,
    Push,
    PushAnswer,
    decode_message_untrusted,
    encode_message,
    signed_bytes,
)
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from protocols.replies import Hello
from protocols.run import DigitsSpec, MlpSpec, RunSpec, SgdSpec, TrainingSpec
from swarm.calls import Caller, CallError, Guard, Rates, StreamClosedError
from swarm.endpoints import Endpoints
from swarm.gossip.models import Models
from swarm.gossip.peer import GOSSIP_SERVICE, GossipHooks, GossipPeer
from swarm.learner.learner import Learner
from swarm.learner.task import open_task
from swarm.mode import RunContext
from swarm.mode_info import Wishes
from swarm.resources import open_resources
from swarm.tensors.wire import to_wire
from tests.fakes.host import MemoryNetwork
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio

RUN = RunSpec(
    name="tiny",
    mode="gossip",
    data=DigitsSpec(kind="digits"),
    model=MlpSpec(kind="mlp", layers=2, width=16),
    optimizer=SgdSpec(kind="sgd"),
    training=TrainingSpec(batch=8, steps=100_000, evaluate_every=0),
    table=GossipSpec(batch_every_s=0.05),
)
TASK = open_task(RUN)


class Scene:
    """One peer of a run, and a neighbour that is a test's puppet."""

    def __init__(
        self, peer: GossipPeer, models: Models, guard: Guard, caller: Caller, own: PeerID
    ) -> None:
        self.peer = peer
        self.models = models
        self.guard = guard
        self.caller = caller
        self.own = own
        self.sequence = 0

    def push(self, **changes: Any) -> Push:
        self.sequence += 1
        push = Push(
            epoch=1, sequence=self.sequence, part=0, layout=self.models.layout.digest,
            trained=1, averages=0,
        )  # fmt: skip
        return dataclasses.replace(push, **changes)

    def model(self) -> Tensor:
        return self.models.learner.flat.detach().clone()

    async def verdict(self, push: Push, *bodies: Tensor) -> str:
        answer = await self.caller.call(
            self.own, GOSSIP_SERVICE, encode_message(push), [to_wire(body) for body in bodies],
            deadline_s=10.0,
        )  # fmt: skip
        told = decode_message_untrusted(answer.message)
        assert isinstance(told, PushAnswer)
        return told.verdict

    @property
    def faults(self) -> int:
        return sum(self.guard.faults().values())


@asynccontextmanager
async def open_scene(tmp_path: Path, *, known: bool = True) -> AsyncIterator[Scene]:
    own, other = SeededSigner(1), SeededSigner(2)
    guard = Guard()
    async with MemoryNetwork.open() as network, trio.open_nursery() as nursery:
        host, stranger = network.join(own.peer_id), network.join(other.peer_id)
        shared: dict[str, Any] = {"run_key": None, "guard": guard, "rates": Rates()}
        context = RunContext(
            run=RUN, signer=own, verify=verify_signature, host=host, directory=None,  # type: ignore[arg-type]
            wishes=Wishes(), founding=lambda: None, folder=tmp_path, life=None,  # type: ignore[arg-type]
            keeper=None,  # type: ignore[arg-type]
            refuses_work=lambda: None, rng=random.Random(0), unix_s=lambda: 1e9, **shared,
        )  # fmt: skip
        limits: dict[str, Any] = {"limits": Limits()}
        async with open_resources(host, RUN.run_id, **shared, **limits) as resources:
            learner = await resources.compute.run_own(
                lambda: Learner(RUN, TASK, TASK.batches(0, salt=b""), seed=1)
            )
            models = Models(learner, RUN.settings(GossipSpec))
            peer = GossipPeer(
                context, resources, models, epoch=1, founds=True,
                hooks=GossipHooks(
                    trained=lambda trained, evaluation: None, evaluated=lambda evaluation: None,
                    averaged=lambda averaging: None, rolled_back=lambda: None,
                    stepped=trio.lowlevel.checkpoint, look=lambda: None, left=lambda: None,
                ),
            )  # fmt: skip
            await nursery.start(peer.run)
            await Endpoints(host, RUN.run_id, **shared, **limits).open(peer.wire())
            if known:
                peer.contacts_found((other.peer_id,))
            caller = Caller(stranger, hello=Hello(run=RUN.run_id))
            await nursery.start(caller.run)
            yield Scene(peer, models, guard, caller, own.peer_id)
            nursery.cancel_scope.cancel()


def play(tmp_path: Path, script: Callable[[Scene], Awaitable[None]], *, known: bool = True) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_scene(tmp_path, known=known) as scene:
                await script(scene)

    trio.run(main)


def test_a_neighbours_model_is_taken_and_averaged(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        assert await scene.verdict(scene.push(), scene.model() * 1.1) == "taken"
        while not scene.peer.core.standing.averages:  # noqa: ASYNC110 - as a person looks
            await trio.sleep(0.02)
        assert not scene.models.received
        assert scene.faults == 0

    play(tmp_path, script)


def test_a_model_of_another_shape_or_dtype_is_refused_and_blamed(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        assert await scene.verdict(scene.push(), scene.model()[:-1]) == "bad"
        assert await scene.verdict(scene.push(), scene.model().half().float()[None]) == "bad"
        assert await scene.verdict(scene.push(layout=bytes(32)), scene.model()) == "bad"
        assert await scene.verdict(scene.push(part=3), scene.model()) == "bad"
        assert await scene.verdict(scene.push()) == "bad"
        assert scene.faults == 5
        assert not scene.models.received

    play(tmp_path, script)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_not_finite_are_refused_and_blamed(tmp_path: Path, value: float) -> None:
    async def script(scene: Scene) -> None:
        model = scene.model()
        model[7], model[8] = value, -value
        assert await scene.verdict(scene.push(), model) == "non-finite"
        assert scene.faults == 1
        assert not scene.models.received

    play(tmp_path, script)


def test_an_old_model_sent_again_is_refused(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        push = scene.push()
        assert await scene.verdict(push, scene.model()) == "taken"
        assert await scene.verdict(push, scene.model()) == "old"

    play(tmp_path, script)


def test_a_thousand_models_of_one_sender_hold_the_memory_of_one(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        for _ in range(1000):
            await scene.verdict(scene.push(), scene.model())
            assert len(scene.models.received) <= 1
        assert scene.models.bytes_held <= 5 * scene.model().nbytes

    play(tmp_path, script)


def test_who_is_no_neighbour_is_refused_and_not_blamed(tmp_path: Path) -> None:
    """It may know of us before the directory has told us of it."""

    async def script(scene: Scene) -> None:
        assert await scene.verdict(scene.push(), scene.model()) == "unknown"
        assert not scene.models.received
        assert scene.faults == 0

    play(tmp_path, script, known=False)


def test_a_push_larger_than_the_model_is_not_received(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises((StreamClosedError, CallError)):
            await scene.verdict(scene.push(), torch.zeros(scene.model().numel() * 2))
        assert scene.faults == 1

    play(tmp_path, script)


def test_an_offer_is_signed_by_who_makes_it(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        while not scene.peer.core.standing.sequence:  # noqa: ASYNC110 - as a person looks
            await trio.sleep(0.02)
        answer = await scene.caller.call(
            scene.own, GOSSIP_SERVICE, encode_message(OfferWanted()), deadline_s=10.0
        )
        offer = decode_message_untrusted(answer.message)
        assert isinstance(offer, ModelOffer)
        signed = signed_bytes(RUN.run_id, scene.own, offer)
        assert verify_signature(scene.own, signed, offer.signature)
        forged = dataclasses.replace(offer, trained=offer.trained + 1)
        assert not verify_signature(
            scene.own, signed_bytes(RUN.run_id, scene.own, forged), offer.signature
        )

    play(tmp_path, script)


def test_what_asks_for_nothing_is_blamed(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(CallError):
            await scene.caller.call(
                scene.own, GOSSIP_SERVICE, encode_message(PushAnswer("taken")), deadline_s=10.0
            )
        assert scene.faults == 1
        await scene.caller.cast(scene.own, GOSSIP_SERVICE, encode_message(Leaving()))

    play(tmp_path, script)
