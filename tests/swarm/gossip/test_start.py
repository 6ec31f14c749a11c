"""A gossip run that goes on from one peer's model of another gossip run: every peer begins from it, moments and all."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio
from torch import Tensor

from node.identity import verify_signature
from protocols.gossip.settings import GossipSpec
from protocols.run import (
    AdamWSpec,
    DigitsSpec,
    MlpSpec,
    RunSpec,
    StartSpec,
    TrainingSpec,
    start_digest,
)
from swarm.calls import Guard, Rates
from swarm.endpoints import Endpoints
from swarm.gossip.info import MODEL
from swarm.gossip.mode import GossipMode
from swarm.gossip.start import check_start
from swarm.learner.learner import Learner
from swarm.learner.task import open_task
from swarm.mode import RunContext
from swarm.mode_info import Wishes
from swarm.resources import Resources, open_resources
from swarm.state.checkpoint import FOLDER, scan
from swarm.state.checkpoint_tensors import write_checkpoint
from swarm.state.initial import StartMisfitError
from swarm.state.part import PartFacts
from swarm.state.start import checkpoints_for, whole_starts
from tests.fakes.directory import MemoryDht
from tests.fakes.host import MemoryNetwork
from tests.fakes.keeper import NothingKept
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio

TRAINED = 5
RUN = RunSpec(
    name="tiny",
    mode="gossip",
    data=DigitsSpec(kind="digits"),
    model=MlpSpec(kind="mlp", layers=2, width=16),
    optimizer=AdamWSpec(warmup_steps=2),
    training=TrainingSpec(batch=8, steps=8, evaluate_every=0),
    table=GossipSpec(),
)
TASK = open_task(RUN)


def trained(seed: int = 9) -> Mapping[str, Tensor]:
    """Return what a peer of the old run held after a few batches."""
    learner = Learner(RUN, TASK, TASK.batches(3, salt=b"other"), seed=seed)
    for _ in range(TRAINED):
        learner.train_batch()
    return learner.snapshot()[1]


def write_old(runs: Path, seed: int = 9) -> StartSpec:
    """Write that peer's checkpoint below `runs`; return the start that names it."""
    written = write_checkpoint(
        runs / str(RUN.run_id) / FOLDER, RUN.run_id, MODEL, TRAINED, trained(seed),
        PartFacts(epoch=1_790_000_000_000), now_unix_s=1.0,
    )  # fmt: skip
    files = {MODEL: written.manifest.sha256}
    return StartSpec(run=str(RUN.run_id), step=TRAINED, sha256=start_digest(files))


def new_run(start: StartSpec, **model: Any) -> RunSpec:
    return dataclasses.replace(
        RUN,
        start=start,
        training=dataclasses.replace(RUN.training, steps=20),
        model=dataclasses.replace(RUN.model, **model),
    )


class Node:
    """One node's mode, with all it uses of the node but checkpoints of its own."""

    def __init__(self, mode: GossipMode, resources: Resources, endpoints: Endpoints) -> None:
        self.mode = mode
        self.resources = resources
        self.endpoints = endpoints

    async def prepare(self) -> bool:
        """Do what comes before the first batch."""
        return await self.mode._prepare(self.resources, founds=True)

    async def run(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.mode.run, self.resources)
        await self.endpoints.open(self.mode.wire())

    @property
    def learner(self) -> Learner:
        assert self.mode._models is not None
        return self.mode._models.learner


@asynccontextmanager
async def open_node(
    number: int, run: RunSpec, runs: Path, network: MemoryNetwork, dht: MemoryDht
) -> AsyncIterator[Node]:
    signer = SeededSigner(number)
    host, guard = network.join(signer.peer_id), Guard()
    shared: dict[str, Any] = {"run_key": None, "guard": guard, "rates": Rates()}
    nothing: Any = lambda *told: None  # noqa: E731

    async def founding() -> bool:
        return number == 1

    context = RunContext(
        run=run, signer=signer, verify=verify_signature, host=host, directory=dht.directory(signer),
        wishes=Wishes(), founding=founding, folder=runs / str(run.run_id),
        life=SimpleNamespace(needs_state=nothing, has_state=nothing),
        keeper=NothingKept(),
        refuses_work=lambda: None, rng=random.Random(number), unix_s=lambda: 1.8e9, **shared,
    )  # fmt: skip
    mode = GossipMode(context)
    async with open_resources(host, run.run_id, limits=mode.limits, **shared) as resources:
        yield Node(mode, resources, Endpoints(host, run.run_id, limits=mode.limits, **shared))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_peer_begins_from_the_named_model_with_its_moments_and_another_fetches_it(
    tmp_path: Path, was_there: bool
) -> None:
    run = new_run(write_old(tmp_path / "first"))
    if was_there:  # its own model of that step is another one
        write_old(tmp_path / "second", seed=10)

    async def main() -> None:
        dht = MemoryDht()
        async with (
            MemoryNetwork.open() as network,
            trio.open_nursery() as nursery,
            open_node(1, run, tmp_path / "first", network, dht) as first,
            open_node(2, run, tmp_path / "second", network, dht) as second,
        ):
            with trio.fail_after(30):
                assert await first.prepare()
                assert same(first.learner.snapshot()[1], trained())
                await first.run(nursery)
                nursery.start_soon(second.mode._presence.run)
                assert await second.prepare()
                assert same(second.learner.snapshot()[1], trained())
                assert second.learner.trained == TRAINED
                await second.run(nursery)
                for node in (first, second):
                    while node.learner.trained < 20:  # noqa: ASYNC110 - as a person looks
                        await trio.sleep(0.02)
                assert not same(second.learner.snapshot()[1], trained())
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert list((tmp_path / "second").glob("*/start/model/*.safetensors"))


def test_a_peer_without_it_waits_and_says_for_what(tmp_path: Path) -> None:
    run = new_run(write_old(tmp_path / "elsewhere"))

    async def main() -> None:
        dht = MemoryDht()
        async with (
            MemoryNetwork.open() as network,
            open_node(1, run, tmp_path / "here", network, dht) as node,
        ):
            with trio.move_on_after(0.5):
                await node.prepare()
            (problem,) = node.mode.progress().problems
            assert "no checkpoint of run" in problem
            assert "there is no other member to fetch it from" in problem

    trio.run(main)


def test_a_model_of_other_shapes_is_refused_with_the_first_that_differs(tmp_path: Path) -> None:
    run = new_run(write_old(tmp_path), width=17)

    async def main() -> None:
        dht = MemoryDht()
        async with (
            MemoryNetwork.open() as network,
            open_node(1, run, tmp_path, network, dht) as node,
        ):
            assert not await node.prepare()
            (problem,) = node.mode.progress().problems
            assert "in the checkpoint, and" in problem

    trio.run(main)


def test_what_is_listed_fits_the_run_that_names_it(tmp_path: Path) -> None:
    start = write_old(tmp_path)
    found = scan(tmp_path / str(RUN.run_id) / FOLDER, RUN.run_id)[0]
    assert whole_starts(RUN.run_id, found, (MODEL,)) == [start]
    here = checkpoints_for(start, tmp_path / "new")
    check_start(new_run(start), here)
    with pytest.raises(StartMisfitError, match="in the checkpoint, and"):
        check_start(new_run(start, width=17), here)
