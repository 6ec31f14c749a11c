"""A moe run as a mode: hosts experts, trains everything else, and says how it goes.

The trunk (attention, gates, embedding, head) is every trainer's own, kept together by plain averaging of all with all: that is
mode `gossip`'s peer, with settings of ours. It trains on a thread of its own, for it waits there for experts, its own node's
among them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio
from torch import Tensor

from moe.disk import part_name, part_of
from moe.errors import BridgeClosedError, TooFewExpertsError
from moe.export import Export
from moe.info import MODE, TRUNK
from moe.keeping import ExpertKeeper
from moe.measure import experts_in_a_second, rows_per_s
from moe.model import build_feed_forward, mixtures
from moe.peer import ExpertPeer, PeerSettings
from moe.server import ROWS_MAX
from moe.table import call_figures, expert_rows, host_rows
from moe.task import MoeTask
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID
from protocols.frames import Limits, number_untrusted
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord
from protocols.run import ByteTransformerSpec, TextSpec
from protocols.state_calls import STATE_SERVICE
from swarm.calls import Answer, Incoming, Refusal
from swarm.data.errors import DataError
from swarm.data.text import read_run_text
from swarm.endpoints import Endpoint
from swarm.gossip.models import Models
from swarm.gossip.own_model import OwnModel
from swarm.gossip.peer import GOSSIP_SERVICE, GossipHooks, GossipPeer
from swarm.hosting.compute import ComputeThread, torch_threads
from swarm.learner.learner import Learner, TrainedBatch
from swarm.learner.pace import Pace
from swarm.learner.task import Evaluation
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.presence import Presence
from swarm.resources import Resources
from swarm.schedule import learning_rate
from swarm.state.initial import InitialState, StartMisfitError
from swarm.state.manifest import MANIFEST_BYTES_MAX
from swarm.state.part import Part
from swarm.state.snapshot import Snapshot, expected_specs
from swarm.state.transfer import Snapshots as StateService

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_BEGIN_S: Final = 60.0
"""A node begins to train without some of the experts when they have not come by then."""
_LOOK_S: Final = 0.2
_MEMORY_SHARE: Final = 0.25
_MEASURED_S: Final = 0.2
_ROOM_MAX: Final = 1 << 20
"""Experts, of a node that says it has room for more."""
_COPIES: Final = 6
"""Vectors of an expert's size in memory: parameters, two of the optimizer, gradient, scratch, snapshot."""
_LIST_BYTES: Final = 4 << 20
"""Of the files of a checkpoint that the run begins from."""
_COMPLETE: Final = (
    "nothing: all batches are trained; it hosts experts for the others, and "
    "`murmura export PATH` writes the model"
)


class MoeMode:
    """One moe run on this node."""

    name = MODE
    batch_max = ROWS_MAX

    def __init__(self, context: RunContext) -> None:
        assert isinstance(context.run.model, ByteTransformerSpec)
        self._context = context
        self._run = context.run
        self._spec = context.run.settings(MoeSpec)
        self._model: ByteTransformerSpec = context.run.model
        self._grids = self._spec.grids(self._model.layers)
        self._room = self._spec.experts_per_node or _room(self._model, self._spec)
        if not context.wishes.host:
            self._room = 0
        self._presence = Presence(
            context.host, context.directory, context.run.run_id, MODE, records=self._records
        )
        self._peer: ExpertPeer | None = None
        self._keeper: ExpertKeeper | None = None
        self._gossip: GossipPeer | None = None
        self._models: Models | None = None
        self._state: StateService | None = None
        self._initial: InitialState | None = None
        """What a run with `[start]` begins from, as far as it is here."""
        self._own = OwnModel(
            context.keeper, TRUNK, steps=context.run.training.steps, unix_s=context.unix_s
        )
        self._resources: Resources | None = None
        self._trainers: tuple[PeerID, ...] = ()
        self._rooms: dict[PeerID, int] = {}
        self._experts_left = trio.Event()
        self._trunk_left = trio.Event()
        self._data_problem = ""
        self._pace = Pace(context.run.training.batch)
        self._evaluation: Evaluation | None = None
        self.steps_failed = 0
        """Times that a training step found too few experts; each was tried again."""
        self._begun = False

    @property
    def limits(self) -> Limits:
        """Answers are rows of experts, their parameters, verdicts, offers, manifests and chunks."""
        rows_bytes = self._run.training.batch * self._model.context * self._model.width * 8
        return Limits(
            header_bytes_max=64 * 1024 if self._run.start is None else _LIST_BYTES,
            body_bytes_max=max(
                MANIFEST_BYTES_MAX, rows_bytes, _expert_bytes(self._model, self._spec)
            ),
            tensors_max=2,
        )

    def wire(self) -> Mapping[str, Endpoint]:
        if self._peer is None or self._keeper is None or self._state is None:
            return {}
        short = Limits(header_bytes_max=64 * 1024, body_bytes_max=0, tensors_max=0)
        wire = {
            **self._peer.wire(),
            **self._keeper.wire(),
            STATE_SERVICE: Endpoint(self._answer_state, lambda peer: short),
            GOSSIP_SERVICE: Endpoint(self._answer_gossip, self._gossip_limits),
        }
        return self._initial.beside(wire) if self._initial is not None else wire

    # --- taking part ---

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        founds = await self._context.founding()
        self._resources = resources
        if self._room and not self._spec.experts_per_node:
            measured = await resources.compute.run_own(rows_per_s, self._run, _MEASURED_S)
            self._room = min(self._room, experts_in_a_second(self._run, measured))
        self._initial = self._new_initial(resources)
        peer = self._peer = self._new_peer(resources)
        keeper = self._keeper = self._new_keeper(resources, peer)
        self._state = StateService(
            self._find_part, resources.compute, resources.codec, kept=self._find_kept
        )
        peer.watch(self._grids)
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(self._presence.run)
                self._presence.announce(bytes(msgpack.packb({"room": self._room})))
                await nursery.start(keeper.run)
                await nursery.start(peer.run)
                self._tell_nodes()
                task_status.started()
                self._context.life.has_state(self.name, "hosting experts")
                nursery.start_soon(self._look_until_begun)
                if self._context.wishes.train:
                    await self._train(resources, peer, founds=founds)
                await trio.sleep_forever()
            finally:
                self._gossip = None

    def _new_initial(self, resources: Resources) -> InitialState | None:
        start, context = self._run.start, self._context
        if start is None:
            return None
        initial = InitialState(
            start, context.folder, resources.caller, resources.codec,
            parts=1 + sum(map(len, self._grids)),
        )  # fmt: skip
        initial.members = lambda: tuple(self._rooms)
        initial.syncing = lambda reason: context.life.needs_state(self.name, reason)
        return initial

    async def _initial_expert(self, uid: ExpertUID) -> Mapping[str, Tensor] | None:
        if self._initial is None or self._keeper is None:
            return None
        state = await self._initial.tensors(self._keeper.expected, part=part_name(uid))
        self._context.life.has_state(self.name, "hosting experts")
        return state

    def _new_peer(self, resources: Resources) -> ExpertPeer:
        spec, run = self._spec, self._run
        steps = spec.expert_steps

        def rate(version: int) -> float:
            if not steps:
                return spec.expert_rate * run.optimizer.lr
            return spec.expert_rate * learning_rate(run.optimizer, step=version, steps=steps)

        return ExpertPeer(
            me=self._context.me,
            run=run.run_id,
            directory=self._context.directory,
            caller=resources.caller,
            compute=resources.compute,
            unix_s=self._context.unix_s,
            rate=rate,
            settings=PeerSettings.of_run(run, clip_norm=run.optimizer.clip_norm),
            failed=self._host_failed,
            newer=self._newer_epoch,
            looked=self._looked,
        )

    def _host_failed(self, peer: PeerID) -> None:
        if self._keeper is not None:
            self._keeper.suspect(peer)

    def _newer_epoch(self, uid: ExpertUID, epoch: int) -> None:
        if self._keeper is not None:
            self._keeper.newer(uid, epoch)

    def _looked(self) -> None:
        if self._keeper is not None:
            self._keeper.looked()

    def _new_keeper(self, resources: Resources, peer: ExpertPeer) -> ExpertKeeper:
        return ExpertKeeper(
            self._context,
            resources,
            peer,
            spec=self._spec,
            grids=self._grids,
            make=lambda uid: build_feed_forward(self._model, self._spec, uid, self._run.seed),
            optimizer=self._run.optimizer,
            row=(self._model.width,),
            room=self._room,
            left=self._experts_left.set,
            initial=self._initial_expert,
        )

    async def _train(self, resources: Resources, peer: ExpertPeer, *, founds: bool) -> None:
        """Train the trunk, on a thread of its own, once there are experts. Returns when the data cannot be used."""
        wishes, joins = self._context.wishes, False
        async with ComputeThread(
            "trunk", prepare=torch_threads(wishes.threads), nice=wishes.nice, queue_max=64
        ) as trunk:
            resources.more.append(trunk)
            if self._models is None or self._begun:
                task = await self._open_task(peer)
                if task is None:
                    return
                learner = await trunk.run_own(self._new_learner, task, self._models)
                if self._models is None:
                    resumed = await self._own.resume(learner, trunk)
                    try:
                        joins = not resumed and await self._begin_from_start(learner, trunk)
                    except StartMisfitError as error:
                        self._data_problem = f"start: {error}"
                        log.error("does not train: %s", error)
                        return
                await self._wait_for_experts(peer)
                self._models = await trunk.run_own(Models, learner, self._spec.averaging())
            self._gossip = GossipPeer(
                self._context,
                Resources(resources.caller, trunk, resources.codec),
                self._models,
                epoch=self._own.new_epoch(),
                founds=founds and not self._begun,
                joins=joins,
                averages=self._own.averages,
                hooks=GossipHooks(
                    trained=self._trained,
                    evaluated=lambda evaluation: setattr(self, "_evaluation", evaluation),
                    averaged=lambda averaging: None,
                    rolled_back=lambda: log.warning(
                        "the trunk was not finite: back to the last good one"
                    ),
                    stepped=functools.partial(self._stepped, trunk),
                    look=self._presence.look_now,
                    left=self._trunk_left.set,
                ),
            )
            self._begun = True
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._gossip.run)
                    self._tell_nodes()
            except* BridgeClosedError:
                log.debug("a batch was given up: this part of the node is ending")

    async def _open_task(self, peer: ExpertPeer) -> MoeTask | None:
        assert isinstance(self._run.data, TextSpec)
        try:
            text = await trio.to_thread.run_sync(
                functools.partial(read_run_text, self._run.data, path=self._context.wishes.data)
            )
        except DataError as error:
            self._data_problem = str(error)
            log.error("does not train: %s", error)
            return None
        return MoeTask(self._run, text.data, peer.network, failed=self._step_failed)

    async def _begin_from_start(self, learner: Learner, trunk: ComputeThread) -> bool:
        """Load the trunk of the checkpoint that the run begins from, if it does. Raises StartMisfitError."""
        if self._initial is None or self._run.start is None:
            return False
        _, own = await trunk.run_own(learner.snapshot)
        tensors = await self._initial.tensors(expected_specs(own), part=TRUNK)
        self._context.life.has_state(self.name, "hosting experts")
        trained = self._run.start.step
        await trunk.run_own(functools.partial(learner.load, tensors, trained=trained))
        return True

    async def _stepped(self, trunk: ComputeThread) -> None:
        if self._models is not None:
            await self._own.offer(self._models.learner, self._averages, trunk)

    @property
    def _averages(self) -> int:
        return self._gossip.core.standing.averages if self._gossip is not None else 0

    def _new_learner(self, task: MoeTask, before: Models | None) -> Learner:
        """Build the learner; one that was started again goes on from its own trunk. On the trunk's thread."""
        batches = task.batches(0, salt=bytes(self._context.me))
        learner = Learner(self._run, task, batches, seed=self._run.seed)
        if before is not None:
            learner.load(before.learner.hosted.snapshot(), trained=before.learner.trained)
        return learner

    async def _wait_for_experts(self, peer: ExpertPeer) -> None:
        """The first steps need experts; a full grid is better than the first few."""
        with trio.move_on_after(_BEGIN_S):
            while self._alive(peer) < sum(map(len, self._grids)):  # noqa: ASYNC110 - the view tells nobody
                await trio.sleep(_LOOK_S)

    async def _look_until_begun(self) -> None:
        """Look for other nodes every second until all experts are alive."""
        while self._peer is not None and self._alive(self._peer) < sum(map(len, self._grids)):
            self._presence.look_now()
            await trio.sleep(1.0)

    # --- who takes part ---

    def _records(self, records: Sequence[DirectoryRecord]) -> None:
        self._rooms = {
            record.peer: min(room, _ROOM_MAX)
            for record in records
            if (room := number_untrusted(record.value, "room")) is not None
        }
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        if self._keeper is not None:
            self._keeper.nodes_seen(self._rooms)
        if self._gossip is not None:
            self._gossip.contacts_found(tuple(self._rooms))

    # --- what others ask ---

    async def _answer_state(self, incoming: Incoming) -> Answer:
        assert self._state is not None
        return await self._state.answer(incoming)

    async def _answer_gossip(self, incoming: Incoming) -> Answer:
        if self._gossip is None:
            raise Refusal("busy", "this node does not train yet", 1.0)
        return await self._gossip.answer(incoming)

    def _gossip_limits(self, peer: PeerID) -> Limits:
        if self._gossip is None:
            # Told "busy": a trainer that began before us is not to blame for what it pushes.
            return dataclasses.replace(self.limits, tensors_max=1)
        return self._gossip.limits

    def _find_part(self, name: str) -> Part | None:
        return self._keeper.find_part(name) if self._keeper is not None else None

    def _find_kept(self, name: str, version: int) -> Snapshot | None:
        found = self._keeper.find_kept(name, version) if self._keeper is not None else None
        if found is None and self._gossip is not None:
            found = self._gossip.snapshots.find(name, version)
        return found

    # --- leaving ---

    async def drain(self, deadline_s: float) -> None:
        """Train no more, hand the experts over, and withdraw."""
        with trio.move_on_after(max(1.0, deadline_s - 2.0)):
            if self._gossip is not None:
                self._gossip.drain()
                await self._trunk_left.wait()
            if self._keeper is not None:
                self._keeper.drain()
                await self._experts_left.wait()
        with trio.move_on_after(2.0):
            await self._presence.withdraw()

    # --- how it goes ---

    def _step_failed(self, error: TooFewExpertsError) -> None:
        """Called on the trunk's thread."""
        self.steps_failed += 1

    def _trained(self, trained: TrainedBatch, evaluation: Evaluation | None) -> None:
        self._pace.trained(trio.current_time(), trained.loss)
        if evaluation is not None:
            self._evaluation = evaluation

    def _alive(self, peer: ExpertPeer) -> int:
        now_s = trio.current_time()
        return sum(len(peer.view.alive(grid, now_s)) for grid in self._grids)

    def progress(self) -> Progress:
        learner = self._models.learner if self._models is not None else None
        hosted = len(self._peer.server.hosted) if self._peer is not None else 0
        return Progress(
            in_run=self._peer is not None,
            role=f"{hosted} experts" + (", trains" if self._gossip is not None else ""),
            step=learner.trained if learner is not None else None,
            steps=self._run.training.steps,
            loss=self._pace.loss,
            held_out_loss=self._evaluation.loss if self._evaluation else None,
            samples_per_second=self._pace.samples_per_second,
            peers=len(self._rooms) + 1,
            waiting_for=self._waiting_for(),
            resting=self._gossip is None
            and (not self._context.wishes.train or self._returning_s > 0),
            problems=(self._data_problem,) if self._data_problem else (),
        )

    def _waiting_for(self) -> str | None:
        if self._gossip is not None:
            if self._gossip.core.finished:
                return _COMPLETE
            return "another trainer's trunk" if self._gossip.core.starting else None
        if not self._context.wishes.train or self._peer is None:
            return None
        if self._initial is not None and self._initial.problem:
            return f"the checkpoint that the run begins from: {self._initial.problem}"
        total = sum(map(len, self._grids))
        missing = f"{total - self._alive(self._peer)} of {total} experts that no node has"
        if self._returning_s > 0:
            return f"{missing}; in {self._returning_s:.0f} s others take what its hosts have not brought back"
        return missing

    @property
    def _returning_s(self) -> float:
        """How long this node still leaves experts that nobody has to their hosts; 0: no longer."""
        if self._keeper is None:
            return 0.0
        return max(0.0, self._keeper.core.returning_until_s - trio.current_time())

    def detail(self) -> dict[str, Any]:
        peer, keeper = self._peer, self._keeper
        status: dict[str, Any] = {
            "data_problem": self._data_problem or None,
            "experts": sum(map(len, self._grids)),
        }
        if peer is None or keeper is None:
            return status
        now_s = trio.current_time()
        core = keeper.core
        stats = [expert.stats for expert in peer.server.experts.values()]
        learner = self._models.learner if self._models is not None else None
        layers = [mixture.stats for mixture in mixtures(learner.hosted.module)] if learner else []
        return status | {
            "experts_alive": self._alive(peer),
            "experts_hosted": len(peer.server.hosted),
            "experts_room": self._room,
            "experts_created": core.created,
            "experts_adopted": core.adopted,
            "experts_lost": core.lost,
            "experts_given_up": core.gave_way,
            "experts_handed_over": core.handed_over,
            "experts_taken_over": core.taken_over,
            "experts_taken_back": core.taken_back,
            "replicas": sum(map(len, keeper.replicas.named.values())),
            "replica_of": len(keeper.replicas.core.serving),
            "replica_averages": keeper.replicas.core.averages,
            "snapshots_kept": len(keeper.kept),
            "snapshots_kept_bytes": keeper.bytes_kept,
            "steps_failed": self.steps_failed,
            "experts_missing": sum(layer.experts_missing for layer in layers),
            "gradients_missing": sum(layer.gradients_missing for layer in layers),
            **call_figures(peer),
            "staleness": round(statistics.fmean(s.staleness for s in stats), 2) if stats else None,
            "staleness_max": max((s.staleness_max for s in stats), default=None),
            "stale_refused": sum(s.stale_refused for s in stats),
            "averages": self._averages,
            "grid": list(self._spec.grid),
            "layers": [grid.layer for grid in self._grids],
            "members": host_rows(peer.dispatch, self._rooms, now_s),
            "table": expert_rows(peer, self._grids, layers, now_s=now_s, clock_s=time.monotonic()),
        }

    # --- the model ---

    def parts(self) -> Sequence[Part]:
        experts = self._peer.server.hosted if self._peer is not None else ()
        trunk = [self._own.part(self._models.learner, self._averages)] if self._models else []
        return (*trunk, *(part_of(expert) for expert in experts))

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the whole model as one file; with `checkpoint`, a whole checkpoint as well."""
        gossip, models, peer, keeper = self._gossip, self._models, self._peer, self._keeper
        if gossip is None or models is None or peer is None or keeper is None:
            raise ExportRefusedError("this node does not train, or has not begun to")
        assert self._resources is not None
        export = Export(self._context, self._resources, peer, keeper, gossip, models)
        return await export.write(path, checkpoint=bool(options.get("checkpoint")))


def _room(model: ByteTransformerSpec, spec: MoeSpec) -> int:
    """Return how many experts a quarter of this machine's memory has room for."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, int(_MEMORY_SHARE * memory_bytes / (_expert_bytes(model, spec) * _COPIES)))


def _expert_bytes(model: ByteTransformerSpec, spec: MoeSpec) -> int:
    """Return a bound on the bytes of an expert's parameters: two matrices, biases, at most eight bytes each."""
    return 2 * model.width * spec.hidden * 8
