"""A gossip run as a mode: finds the data, a partition and the neighbours, and says how it goes."""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import trio
from torch import Tensor

from protocols.frames import Limits
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord
from swarm.data.errors import DataError
from swarm.endpoints import Endpoint
from swarm.gossip.arithmetic import Averaging
from swarm.gossip.info import MODE, MODEL
from swarm.gossip.models import Models
from swarm.gossip.own_model import OwnModel
from swarm.gossip.peer import GossipHooks, GossipPeer
from swarm.learner.learner import Learner, TrainedBatch
from swarm.learner.pace import Pace
from swarm.learner.share import DataShare, claim_of
from swarm.learner.task import Evaluation, open_task
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.models.classifier import peer_seed
from swarm.presence import Presence
from swarm.resources import Resources
from swarm.state.export import write_tensors
from swarm.state.initial import InitialState, StartMisfitError
from swarm.state.manifest import MANIFEST_BYTES_MAX
from swarm.state.part import Part
from swarm.state.snapshot import expected_specs

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_FIRST_LOOK_S: Final = 3.0
"""Claims of others are waited for so long before a partition is claimed."""
_LOOK_S: Final = 1.0
_HEADER_BYTES: Final = 64 * 1024
_LIST_BYTES: Final = 4 << 20
"""Some 100 bytes for a tensor, and three tensors for a parameter."""
"""Of what a peer says of itself."""
_COMPLETE: Final = (
    "nothing: all batches are trained; `murmura export PATH` writes this peer's model"
)


class GossipMode:
    """One gossip run on this node."""

    name = MODE
    batch_max = 1
    _run_batch: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None
    """How one batch is done, where not on the compute thread."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._run = context.run
        self._spec = context.run.settings(GossipSpec)
        self._presence = Presence(
            context.host, context.directory, context.run.run_id, MODE, records=self._records
        )
        self._peer: GossipPeer | None = None
        self._models: Models | None = None
        """Kept when the peer behind it is started again: the model goes on."""
        self._share: DataShare | None = None
        self._claims: dict[PeerID, int] = {}
        self._looked = trio.Event()
        self._left = trio.Event()
        self._data_problem = ""
        self._pace = Pace(context.run.training.batch)
        self._evaluation: Evaluation | None = None
        self._averaging: Averaging | None = None
        self._rollbacks = 0
        self._begun = False
        self._own = OwnModel(
            context.keeper, MODEL, steps=context.run.training.steps, unix_s=context.unix_s
        )
        self._initial: InitialState | None = None
        """What a run with `[start]` begins from, as far as it is here."""

    @property
    def limits(self) -> Limits:
        """Answers are verdicts, offers, manifests and chunks; and, with `[start]`, lists of a checkpoint's tensors."""
        header = _HEADER_BYTES if self._run.start is None else _LIST_BYTES
        return Limits(header_bytes_max=header, body_bytes_max=MANIFEST_BYTES_MAX, tensors_max=1)

    def wire(self) -> Mapping[str, Endpoint]:
        if self._peer is None:
            return {}
        wire = self._peer.wire()
        return self._initial.beside(wire) if self._initial is not None else wire

    # --- taking part ---

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        founds = await self._context.founding()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._presence.run)
            if not await self._prepare(resources, founds=founds):
                task_status.started()
                await trio.sleep_forever()
            assert self._models is not None
            self._peer = GossipPeer(
                self._context,
                resources,
                self._models,
                epoch=self._own.new_epoch(),
                founds=founds and not self._begun,
                averages=self._own.averages,
                hooks=GossipHooks(
                    trained=self._trained,
                    evaluated=self._evaluated,
                    averaged=self._averaged,
                    rolled_back=self._rolled_back,
                    stepped=functools.partial(self._stepped, resources),
                    look=self._presence.look_now,
                    left=self._left.set,
                ),
                run_batch=self._run_batch,
            )
            self._begun = True
            try:
                await nursery.start(self._peer.run)
                self._context.life.has_state(self.name, "training a model of its own")
                self._tell_contacts()
                task_status.started()
                await self._look_until_begun()
                await trio.sleep_forever()
            finally:
                self._peer = None

    async def _look_until_begun(self) -> None:
        """Look for neighbours every second while the first batch waits for them."""
        while self._models is not None and not self._models.learner.trained:
            self._presence.look_now()
            await trio.sleep(_LOOK_S)

    async def _prepare(self, resources: Resources, *, founds: bool) -> bool:
        """Read the data, claim a partition of it, and build the model. False when the data cannot be used."""
        if self._models is not None:
            return True
        self._context.life.needs_state(self.name, "reading the data")
        try:
            task = await trio.to_thread.run_sync(
                lambda: open_task(self._run, path=self._context.wishes.data)
            )
        except DataError as error:
            self._data_problem = str(error)
            log.error("does not train: %s", error)
            return False
        share = self._share = DataShare(self._context.me, self._presence, task)
        if not founds:
            with trio.move_on_after(_FIRST_LOOK_S):
                await self._looked.wait()
        self._claim()
        seed = peer_seed(self._run.seed, self._context.me)
        learner = await resources.compute.run_own(
            lambda: Learner(self._run, task, share.batches(), seed=seed)
        )
        resumed = await self._own.resume(learner, resources.compute)
        try:
            await self._begin_from_start(learner, resources, wanted=not resumed)
        except StartMisfitError as error:
            self._data_problem = f"start: {error}"
            log.error("does not train: %s", error)
            return False
        self._models = Models(learner, self._spec)
        return True

    # --- checkpoints ---

    async def _stepped(self, resources: Resources) -> None:
        if self._models is not None:
            await self._own.offer(self._models.learner, self._averages, resources.compute)

    async def _begin_from_start(
        self, learner: Learner, resources: Resources, *, wanted: bool
    ) -> None:
        """Load the model that the run file names, from here or from others. Raises StartMisfitError."""
        start, context, compute = self._run.start, self._context, resources.compute
        if start is None:
            return
        self._initial = InitialState(
            start, context.folder, resources.caller, resources.codec, parts=1
        )
        if not wanted:
            return  # it is there for others
        self._initial.members = lambda: tuple(self._claims)
        self._initial.syncing = lambda reason: context.life.needs_state(self.name, reason)
        _, own = await compute.run_own(learner.snapshot)
        tensors = await self._initial.tensors(expected_specs(own))
        await compute.run_own(functools.partial(learner.load, tensors, trained=start.step))

    # --- who takes part, and on which part of the data ---

    def _records(self, records: Sequence[DirectoryRecord]) -> None:
        self._claims = {
            record.peer: claim for record in records if (claim := claim_of(record)) is not None
        }
        self._looked.set()
        self._claim()
        self._tell_contacts()

    def _tell_contacts(self) -> None:
        if self._peer is not None:
            self._peer.contacts_found(tuple(self._claims))

    def _claim(self) -> None:
        if self._share is not None and not self._left.is_set():
            self._share.claim(
                self._claims, self._models.learner if self._models is not None else None
            )

    # --- leaving ---

    async def drain(self, deadline_s: float) -> None:
        """Tell the neighbours, let pushes on their way end, and withdraw."""
        if self._peer is not None:
            self._peer.drain()
            with trio.move_on_after(max(1.0, deadline_s - 2.0)):
                await self._left.wait()
        self._left.set()
        with trio.move_on_after(2.0):
            await self._presence.withdraw()

    # --- how it goes ---

    def _trained(self, trained: TrainedBatch, evaluation: Evaluation | None) -> None:
        self._pace.trained(trio.current_time(), trained.loss)
        if evaluation is not None:
            self._evaluation = evaluation
        if self._models is not None and self._models.learner.trained == self._run.training.steps:
            log.info(
                "all batches are trained: batches=%d accuracy=%s",
                self._run.training.steps,
                f"{evaluation.accuracy:.2f}" if evaluation and evaluation.accuracy else None,
            )

    def _evaluated(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def _averaged(self, averaging: Averaging) -> None:
        self._averaging = averaging

    def _rolled_back(self) -> None:
        self._rollbacks += 1
        log.warning("the model was not finite: back to the last good one")

    def progress(self) -> Progress:
        peer, learner = self._peer, self._models.learner if self._models is not None else None
        return Progress(
            in_run=peer is not None,
            role="trains" if peer is not None else "",
            step=learner.trained if learner is not None else None,
            steps=self._run.training.steps,
            loss=self._pace.loss,
            held_out_loss=self._evaluation.loss if self._evaluation else None,
            samples_per_second=self._pace.samples_per_second,
            peers=len(self._claims) + 1,
            waiting_for=self._waiting_for(),
            problems=tuple(filter(None, (self._data_problem, self._start_problem))),
        )

    @property
    def _start_problem(self) -> str:
        problem = self._initial.problem if self._initial is not None else ""
        return problem and f"the checkpoint that the run begins from: {problem}"

    def _waiting_for(self) -> str | None:
        if self._peer is None:
            return None
        if self._peer.core.finished:
            return _COMPLETE
        if self._peer.core.starting:
            return "a neighbour's model to start from"
        return None

    def detail(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "accuracy": self._evaluation.accuracy if self._evaluation else None,
            "partition": self._share.partition if self._share is not None else None,
            "data_problem": self._data_problem or None,
        }
        peer, models = self._peer, self._models
        if peer is None or models is None:
            return status
        now_s = trio.current_time()
        neighbours = list(peer.core.neighbourhood.in_order())
        scales = self._averaging.scales if self._averaging is not None else ()
        return status | {
            "epoch": peer.core.standing.epoch,
            "snapshots": peer.snapshots_taken,
            "started_from": str(peer.started_from) if peer.started_from else None,
            "averages": peer.core.standing.averages,
            "pushes_taken": sum(neighbour.sent for _, neighbour in neighbours),
            "models_taken": sum(neighbour.models for _, neighbour in neighbours),
            "models_refused": sum(neighbour.refused for _, neighbour in neighbours),
            "rollbacks": self._rollbacks,
            "scale_median": round(statistics.median(scales), 4) if scales else None,
            "scale_max": round(max(scales), 4) if scales else None,
            "scales": {
                slot.name: round(scale, 4)
                for slot, scale in zip(models.table.slots, scales, strict=False)
            },
            "models_held_bytes": models.bytes_held,
            "neighbours_live": len(neighbours),
            "members": [
                {
                    "peer_id": str(who),
                    "models": neighbour.models,
                    "refused": neighbour.refused,
                    "pushes_taken": neighbour.sent,
                    "last_model_seconds": None
                    if neighbour.heard_s is None
                    else round(now_s - neighbour.heard_s, 1),
                }
                for who, neighbour in neighbours
            ],
        }

    # --- the model ---

    def parts(self) -> Sequence[Part]:
        models = self._models
        return () if models is None else (self._own.part(models.learner, self._averages),)

    @property
    def _averages(self) -> int:
        return self._peer.core.standing.averages if self._peer is not None else 0

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write this peer's model, or the mean of the neighbourhood's."""
        peer, models = self._peer, self._models
        if peer is None or models is None:
            raise ExportRefusedError("this node has not begun to train yet")
        vectors = [await peer.on_model(models.copy)]
        if vectors[0] is None:
            raise ExportRefusedError("this peer's model is not finite just now")
        if options.get("consensus"):
            for who, _ in peer.core.neighbourhood.in_order():
                vectors.append(await peer.fetch_newest(who))
        found = [vector for vector in vectors if vector is not None]
        about = {
            "run": self._run.name,
            "run_id": str(self._run.run_id),
            "step": models.learner.trained,
            "models": len(found),
        }
        size_bytes = await trio.to_thread.run_sync(_write, path, about, models, found)
        return {"path": str(path), **about, "bytes": size_bytes}


def _write(path: Path, about: Mapping[str, Any], models: Models, vectors: Sequence[Tensor]) -> int:
    """Write the mean of these models."""
    return write_tensors(path, models.tensors_of(torch.stack(list(vectors)).mean(dim=0)), about)
