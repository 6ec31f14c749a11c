"""A whole swarm in one process: real peers, compute threads and services on the network in memory.

Time is real, because compute threads are; runs are tiny, so a step takes some 10 ms. Faults happen at a logical point:
`node.at(point, action)` acts once, just before the node takes the first message or call that the point describes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
import trio
from torch import Tensor

from node.identity import verify_signature
from protocols.ids import PeerID
from protocols.ledger.messages import Message, decode_message_untrusted
from protocols.ledger.view import Record, unpack_ids
from protocols.run import DeadlineSpec, RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.calls import Answer, Guard, Incoming, Rates
from swarm.endpoints import Endpoints
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.peer import PipelinePeer
from swarm.pipeline.reference import parameter_difference, train_reference
from swarm.pipeline.services import JOINED_MICROBATCHES, PeerOptions, limits_of, open_peer, wire_of
from swarm.resources import Resources, open_resources
from swarm.state.initial import InitialState
from tests.fakes.host import MemoryHost, MemoryNetwork
from tests.fakes.signer import SeededSigner
from tests.swarm.tiny import tiny_dataset, tiny_run

PATIENCE_S = 30.0
_CONTACTS_S = 0.1

Point: TypeAlias = Callable[[str, Any], bool]
"""(service, message) -> whether this is where the fault belongs."""


def small_run(*, replicas: int = 2, **changes: Any) -> RunSpec:
    """Return a tiny run whose deadlines suit a test: a silent peer is missed after half a second."""
    run = tiny_run(**{"stages": 2, "steps": 6, "microbatches": 6, **changes})
    table = dataclasses.replace(run.table, replicas_to_start=replicas)
    training = dataclasses.replace(run.training, evaluate_every=3)
    deadlines = DeadlineSpec(floor_s=0.5, ceiling_s=4.0)
    return dataclasses.replace(run, table=table, training=training, deadlines=deadlines)


def cast_of(shape: type[Message], **wanted: Any) -> Point:
    """The first ledger message of this kind whose fields are as wanted."""

    def matches(service: str, message: Any) -> bool:
        if service != "ledger" or message is None:
            return False
        decoded = decode_message_untrusted(message)
        return isinstance(decoded, shape) and all(
            getattr(decoded, name) == value for name, value in wanted.items()
        )

    return matches


def call_of(service: str, *, step_from: int = 0, **wanted: Any) -> Point:
    """The first call of a service whose fields are as wanted, in this step or a later one."""

    def matches(where: str, message: Any) -> bool:
        return (
            where == service
            and isinstance(message, dict)
            and message.get("step", step_from) >= step_from
            and all(message.get(name) == value for name, value in wanted.items())
        )

    return matches


class SwarmNode:
    """One node of the swarm."""

    def __init__(self, swarm: SmallSwarm, host: MemoryHost, signer: SeededSigner) -> None:
        self.swarm = swarm
        self.signer = signer
        self.host = host
        self.peer_id: PeerID = host.peer_id
        self.guard = Guard()
        self._shared: dict[str, Any] = {
            "run_key": None,
            "guard": self.guard,
            "rates": Rates(),
            "limits": limits_of(swarm.run),
        }
        self.endpoints = Endpoints(host, swarm.run.run_id, **self._shared)
        self.opened: PipelinePeer | None = None
        self.resources: Resources | None = None
        self.left = trio.Event()
        self.start_folder = swarm.start_folders.pop(0) if swarm.start_folders else None
        self.serving = trio.Event()
        self.journal: list[Record] = []
        self.reasons: list[str] = []
        self.scope = trio.CancelScope()
        self._life = trio.CancelScope()
        self._points: list[tuple[Point, Callable[[], None]]] = []

    @property
    def peer(self) -> PipelinePeer:
        assert self.opened is not None
        return self.opened

    async def run(
        self, options: PeerOptions, *, train: bool, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Take part until crashed, or left."""
        hooks = PeerHooks(
            record_learned=self._learned,
            syncing=self.reasons.append,
            serving=lambda reason: self.serving.set(),
            left=self.left.set,
        )
        rng = random.Random(self.peer_id)
        with self.scope:
            while True:
                with trio.CancelScope() as self._life:
                    async with (
                        open_resources(
                            self.host,
                            self.swarm.run.run_id,
                            batch_max=JOINED_MICROBATCHES,
                            **self._shared,
                        ) as self.resources,
                        open_peer(
                            self.swarm.run,
                            self.host,
                            self.guard,
                            self.resources,
                            self._with_start(options, self.resources),
                            signer=self.signer,
                            verify=verify_signature,
                            rng=rng,
                            hooks=hooks,
                        ) as self.opened,
                    ):
                        self._tap()
                        await self.endpoints.open(wire_of(self.peer))
                        if train:
                            self.peer.train_on(tiny_dataset(self.swarm.run))
                        task_status.started()
                        await self._look_for_contacts()
                options = dataclasses.replace(options, founder=False)
                task_status = trio.TASK_STATUS_IGNORED

    def _with_start(self, options: PeerOptions, resources: Resources) -> PeerOptions:
        start, folder = self.swarm.run.start, self.start_folder
        if start is None or folder is None:
            return options
        stages = pipeline_of(self.swarm.run).stages
        initial = InitialState(start, folder, resources.caller, resources.codec, parts=stages)
        return dataclasses.replace(options, initial=initial)

    async def _look_for_contacts(self) -> None:
        while True:
            outsider = self.peer.ledger.member is None and not self.left.is_set()
            if outsider and not self.swarm.directory_is_out:
                self.peer.contacts_found(self.swarm.others(self))
            await trio.sleep(_CONTACTS_S)

    async def fail(self) -> None:
        """End the peer as an error in it would, and make it anew, as the supervisor does."""
        before = self.opened
        self._life.cancel()
        await self.swarm.until(lambda: self.opened is not before)

    def at(self, point: Point, action: Callable[[], None]) -> None:
        """Do something once, just before this node takes what the point describes."""
        self._points.append((point, action))

    def cut(self) -> None:
        """Lose every packet from and to this node."""
        for other in self.swarm.others(self):
            self.swarm.network.link(self.peer_id, other).cut = True

    def heal(self) -> None:
        for other in self.swarm.others(self):
            self.swarm.network.heal(self.peer_id, other)

    def crash(self) -> None:
        """Die without a word; the connections break."""
        if self in self.swarm.nodes:
            self.swarm.nodes.remove(self)
            self.scope.cancel()
            self.swarm.network.crash(self.peer_id)

    async def drain(self) -> None:
        """Leave as the daemon does: ask, wait until let go, end."""
        self.peer.drain()
        with trio.fail_after(PATIENCE_S):
            await self.left.wait()
        self.crash()

    def _learned(self, record: Record) -> None:
        self.journal.append(record)
        self.swarm.learned(record)

    def _tap(self) -> None:
        peer: Any = self.peer
        peer.answer_ledger = self._tapped("ledger", peer.answer_ledger)
        peer.answer_stage = self._tapped("stage", peer.answer_stage)
        peer.reduction.answer = self._tapped("reduce", peer.reduction.answer)
        peer.state.snapshots.answer = self._tapped("state", peer.state.snapshots.answer)

    def _tapped(
        self, service: str, answer: Callable[[Incoming], Awaitable[Answer]]
    ) -> Callable[[Incoming], Awaitable[Answer]]:
        async def tapped(incoming: Incoming) -> Answer:
            for entry in list(self._points):
                point, action = entry
                if point(service, incoming.message):
                    self._points.remove(entry)
                    action()
                    await trio.lowlevel.checkpoint()
            return await answer(incoming)

        return tapped


class SmallSwarm:
    """All nodes of one run."""

    def __init__(self, run: RunSpec, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.run = run
        self.network = network
        self.nursery = nursery
        self.nodes: list[SwarmNode] = []
        self.directory_is_out = False
        self.start_folders: list[Path] = []
        """The run's folder on each node's disk, in a run that goes on from a checkpoint; one is used up per node."""
        self.records: dict[int, Record] = {}
        self._news = trio.Event()
        self._seeds = 0

    async def node(self, *, train: bool = True, **options: Any) -> SwarmNode:
        """Start one more node; the first one founds the run."""
        self._seeds += 1
        signer = SeededSigner(self._seeds)
        node = SwarmNode(self, self.network.join(signer.peer_id), signer)
        founder = self._seeds == 1
        self.nodes.append(node)
        await self.nursery.start(
            lambda task_status: node.run(
                PeerOptions(founder=founder, **options), train=train, task_status=task_status
            )
        )
        return node

    def others(self, node: SwarmNode) -> list[PeerID]:
        return [other.peer_id for other in self.nodes if other is not node]

    def learned(self, record: Record) -> None:
        """One history only, whoever tells it."""
        known = self.records.setdefault(record.index, record)
        assert known == record
        self._news.set()
        self._news = trio.Event()

    @property
    def newest(self) -> Record:
        return self.records[max(self.records)]

    @property
    def step(self) -> int:
        return self.newest.step

    async def until(self, reached: Callable[[], Any]) -> None:
        """Wait until something holds; looked at after every record and now and then."""
        with trio.fail_after(PATIENCE_S):
            while not reached():
                with trio.move_on_after(0.05):
                    await self._news.wait()

    async def finished(self) -> None:
        """Wait until the run is over and every present node has applied its last step."""
        steps = pipeline_of(self.run).steps

        def done() -> bool:
            return self.step == steps and all(
                (hosted := node.peer.state.complete) is not None and hosted.version == steps
                for node in self.nodes
                if node.peer.ledger.member is not None
            )

        await self.until(done)

    async def until_step(self, step: int) -> None:
        await self.until(lambda: self.step >= step)

    def member_of(self, stage: int, *, but: SwarmNode | None = None) -> SwarmNode:
        """Return a node that hosts a stage."""
        for node in self.nodes:
            member = node.peer.ledger.member
            if node is not but and member is not None and member.stage == stage:
                return node
        raise AssertionError(f"nobody hosts stage {stage}")

    def parameters(self) -> dict[str, Tensor]:
        """Return the trained model, after checking that replicas hold the same bits."""
        found: dict[str, Tensor] = {}
        for node in self.nodes:
            hosted = node.peer.state.complete
            if node.peer.ledger.member is None or hosted is None:
                continue
            for name, tensor in hosted.parameters().items():
                assert torch.equal(found.setdefault(name, tensor), tensor)
        return found

    def check_counts(self) -> None:
        """Every step's record counts each microbatch once at each stage: from the records alone."""
        steps = [record for record in self.records.values() if record.commits_step]
        assert [record.step for record in sorted(steps, key=lambda r: r.index)] == list(
            range(1, pipeline_of(self.run).steps + 1)
        )
        for record in steps:
            before = self.records[record.index - 1].members
            stage_of = {member.peer: member.stage for member in before}
            for stage in range(pipeline_of(self.run).stages):
                ids = [
                    unpack_ids(tally.counted)
                    for tally in record.tallies
                    if stage_of[tally.peer] == stage
                ]
                assert sum(ids) == (1 << pipeline_of(self.run).microbatches) - 1
                assert sum(i.bit_count() for i in ids) == pipeline_of(self.run).microbatches

    def check_equals_reference(self) -> None:
        """The swarm computed what one process computes."""
        self.check_counts()
        reference = train_reference(self.run, tiny_dataset(self.run))
        bound = 1e-9 if pipeline_of(self.run).model.dtype == "float64" else 1e-5
        difference = parameter_difference(self.parameters(), reference.parameters)
        assert difference <= bound
        losses = [r.loss for _, r in sorted(self.records.items()) if r.commits_step]
        for ours, theirs in zip(losses, reference.losses, strict=True):
            assert ours is not None
            assert abs(ours - theirs) <= 1e-5


@asynccontextmanager
async def open_swarm(run: RunSpec) -> AsyncIterator[SmallSwarm]:
    """Open a network for nodes; all of them end with the block."""
    async with MemoryNetwork.open() as network, trio.open_nursery() as nursery:
        yield SmallSwarm(run, network, nursery)
        nursery.cancel_scope.cancel()
