"""Peers of a collective run on the in-memory network, with an averager in memory: what is left to it is tested by itself."""

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
from protocols.averaging.settings import AveragingSpec
from protocols.collective.messages import RoundBegins, StandingWanted, encode_message
from protocols.collective.rounds import FIRST_LINE
from protocols.collective.settings import CollectiveSpec
from protocols.frames import Limits
from protocols.ids import PeerID
from protocols.replies import Hello
from protocols.run import AdamWSpec, DigitsSpec, MlpSpec, RunSpec, TrainingSpec
from protocols.schema import encode
from protocols.state_calls import STATE_SERVICE, StateCall
from swarm.averaging.all_reduce import Averaged, Averager, RoundAbortedError
from swarm.calls import Caller, CallError, Guard, Rates
from swarm.collective.holder import History, Holder
from swarm.collective.peer import COLLECTIVE_SERVICE, CollectiveHooks, CollectivePeer
from swarm.endpoints import Endpoints
from swarm.learner.learner import Learner, TrainedBatch
from swarm.learner.task import Evaluation, open_task
from swarm.mode import RunContext
from swarm.mode_info import Wishes
from swarm.resources import open_resources
from tests.fakes.host import MemoryNetwork
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio

RUN = RunSpec(
    name="tiny",
    mode="collective",
    data=DigitsSpec(kind="digits", partitions=2),
    model=MlpSpec(kind="mlp", layers=3, width=32),
    training=TrainingSpec(batch=16, steps=60, evaluate_every=20),
    optimizer=AdamWSpec(lr=1e-2, warmup_steps=0),
    table=CollectiveSpec(
        local_steps=10, fragments=2, overlap_steps=1, outer_rate=0.7, outer_momentum=0.5
    ),
)
TASK = open_task(RUN)


class Faulty(Averager):
    """The product's, with outcomes that a test may spoil."""

    aborts: Callable[[int], bool] = staticmethod(lambda version: False)
    change: Callable[[Tensor], Tensor] = staticmethod(lambda mean: mean)

    async def average(
        self,
        key: str,
        version: int,
        vector: Tensor,
        weight: float = 1.0,
        *,
        common: bytes = b"",
        spare: Any = None,
    ) -> Averaged:
        done = await super().average(key, version, vector, weight, common=common)
        if self.aborts(version):
            raise RoundAbortedError("a test wants it so", newest=version, begun=True)
        return dataclasses.replace(done, mean=self.change(done.mean))


@dataclasses.dataclass(eq=False)
class Node:
    peer: CollectivePeer
    holder: Holder
    averager: Faulty
    guard: Guard
    me: PeerID
    looks: list[Evaluation]
    scope: trio.CancelScope

    @property
    def finished(self) -> bool:
        return self.peer.core.finished and self.peer.core._job is None

    def outer(self) -> Tensor:
        return self.holder.outer.parameters


class Scene:
    """A run whose peers are started and ended by a test."""

    def __init__(self, network: Any, nursery: trio.Nursery, folder: Path) -> None:
        self.network, self.nursery, self.folder = network, nursery, folder
        self.nodes: list[Node] = []
        self.step_s = 0.0
        self.go = trio.Event()
        """Nobody trains before."""

    async def add(self, seed: int, *, founds: bool = False) -> Node:
        node: Node = await self.nursery.start(self._live, seed, founds)
        self.nodes.append(node)
        self.tell()
        return node

    async def pair(self) -> tuple[Node, Node]:
        """Two peers that begin together."""
        return await self.add(0, founds=True), await self.add(1)

    def tell(self) -> None:
        for node in self.nodes:
            node.peer.contacts_found(tuple(other.me for other in self.nodes))

    def kill(self, node: Node) -> None:
        node.scope.cancel()
        self.nodes.remove(node)
        self.tell()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110 - as a person looks
            await trio.sleep(0.01)

    async def _live(
        self, seed: int, founds: bool, *, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        signer = SeededSigner(seed)
        guard = Guard()
        host = self.network.join(signer.peer_id)
        shared: dict[str, Any] = {"run_key": None, "guard": guard, "rates": Rates()}
        context = RunContext(
            run=RUN, signer=signer, verify=verify_signature, host=host, directory=None,  # type: ignore[arg-type]
            wishes=Wishes(), founding=lambda: None, folder=self.folder, life=None,  # type: ignore[arg-type]
            keeper=None,  # type: ignore[arg-type]
            refuses_work=lambda: None, rng=random.Random(seed), unix_s=lambda: 1e9, **shared,
        )  # fmt: skip
        limits: dict[str, Any] = {"limits": Limits(body_bytes_max=1 << 24)}
        looks: list[Evaluation] = []
        async with open_resources(host, RUN.run_id, **shared, **limits) as resources:
            batches = TASK.batches(seed, salt=b"")
            learner = await resources.compute.run_own(
                lambda: Learner(RUN, TASK, batches, seed=RUN.seed)
            )
            holder = Holder(learner, RUN.settings(CollectiveSpec))

            async def step(do: Callable[[], Any]) -> Any:
                await self.go.wait()
                await trio.sleep(self.step_s)
                return await resources.compute.run_own(do)

            averager = Faulty(
                signer.peer_id, resources.caller, resources.codec,
                spec=AveragingSpec(gather_floor_s=0.2, gather_ceiling_s=0.8, answer_s=0.5),
                rng=random.Random(seed),
            )  # fmt: skip
            resources.caller.on_unreachable = averager.lost
            peer = CollectivePeer(
                context, resources, holder, averager,
                founds=founds, kept=False, run_step=step,
                hooks=CollectiveHooks(
                    trained=_ignore, evaluated=looks.append, averaged=trio.lowlevel.checkpoint,
                    finished=trio.lowlevel.checkpoint,
                    look=lambda: None, left=lambda: None,
                ),
            )  # fmt: skip
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.run)
                await Endpoints(host, RUN.run_id, **shared, **limits).open(peer.wire())
                task_status.started(
                    Node(peer, holder, averager, guard, signer.peer_id, looks, nursery.cancel_scope)
                )


def _ignore(trained: TrainedBatch) -> None:
    pass


@asynccontextmanager
async def open_scene(folder: Path) -> AsyncIterator[Scene]:
    async with MemoryNetwork.open() as network, trio.open_nursery() as nursery:
        yield Scene(network, nursery, folder)
        nursery.cancel_scope.cancel()


def play(folder: Path, script: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with open_scene(folder) as scene:
                await script(scene)

    trio.run(main)


def test_peers_end_with_the_same_outer_parameters_which_have_learned(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        one, other = await scene.pair()
        scene.go.set()
        await scene.until(lambda: one.finished and other.finished)
        assert torch.equal(one.outer(), other.outer())
        assert torch.equal(one.holder.learner.flat, one.outer())
        before = TASK.evaluate(TASK.build(RUN.seed))
        assert one.looks[-1].loss < before.loss / 2
        assert not any(one.guard.faults().values())

    play(tmp_path, script)


@pytest.mark.soak
def test_a_round_that_one_peer_misses_costs_nothing_but_a_fetch(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.step_s = 0.02
        one, other = await scene.pair()
        other.averager.aborts = lambda version: version == 30
        scene.go.set()
        await scene.until(lambda: one.finished and other.finished)
        assert other.peer.core.missed >= 1
        assert other.peer.core.whereabouts.adoptions >= 1
        assert torch.equal(one.outer(), other.outer())

    play(tmp_path, script)


def test_a_late_peer_fetches_the_outer_state_and_a_killed_one_is_not_missed(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        scene.step_s = 0.03
        one, other = await scene.pair()
        scene.go.set()
        await scene.until(lambda: one.peer.core.step >= 18)
        late = await scene.add(2)
        await scene.until(lambda: late.peer.core.ready)
        assert late.peer.core.whereabouts.adoptions >= 2
        await scene.until(lambda: late.peer.core.rounds >= 1)
        scene.kill(other)
        await scene.until(lambda: one.finished and late.finished)
        assert torch.equal(one.outer(), late.outer())

    play(tmp_path, script)


def test_a_mean_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        one, other = await scene.pair()
        for node in (one, other):
            node.averager.change = lambda mean: mean * float("inf")
        before = one.outer().clone()
        scene.go.set()
        await scene.until(lambda: one.peer.core.missed >= 3 and other.peer.core.missed >= 3)
        assert torch.equal(one.outer(), before)
        assert one.peer.core.rounds == 0

    play(tmp_path, script)


def test_what_makes_no_sense_is_refused_or_blamed(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        node = await scene.add(0, founds=True)
        host = scene.network.join(SeededSigner(9).peer_id)
        caller = Caller(host, hello=Hello(run=RUN.run_id))
        await scene.nursery.start(caller.run)

        async def call(service: str, message: Any) -> None:
            await caller.call(node.me, service, message, deadline_s=5.0)

        await call(COLLECTIVE_SERVICE, encode_message(StandingWanted()))
        for part in ("outer/2", "outer/-1", "outer/x", "outer/", "model", "outer/0/0", "outer/٣"):
            with pytest.raises(CallError, match="does not hold"):
                await call(STATE_SERVICE, encode(StateCall(part=part, version=None)))
        await call(STATE_SERVICE, encode(StateCall(part="outer/1", version=None)))
        assert not any(node.guard.faults().values())
        beyond = RoundBegins(200, 10, FIRST_LINE)
        await call(COLLECTIVE_SERVICE, encode_message(beyond))
        assert sum(node.guard.faults().values()) == 1
        with pytest.raises(CallError):
            await call(COLLECTIVE_SERVICE, {"tag": "standing", "body": {}})
        assert sum(node.guard.faults().values()) == 2

    play(tmp_path, script)


def test_an_outer_state_of_a_step_that_the_run_has_not_is_not_adopted(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        liar = await scene.add(0, founds=True)
        lines = (b"x" * 16, FIRST_LINE)
        for index, fragment in enumerate(liar.peer.core.fragments):
            fragment.version, fragment.lines = 1 << 40, lines
            liar.holder.histories[index] = History(1 << 40, lines)
        late = await scene.add(1)
        await scene.until(lambda: bool(late.guard.faults()) or bool(late.holder.version))
        assert late.guard.faults().get(liar.me)
        assert late.holder.version == 0
        assert late.peer.core.whereabouts.adoptions == 0

    play(tmp_path, script)
