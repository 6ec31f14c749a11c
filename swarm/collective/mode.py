"""A collective run as a mode: finds the data, the members and the state to begin with, and says how it goes."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio
from torch import Tensor

from protocols.collective.collective import LAST_ROUNDS_MAX
from protocols.collective.messages import Standing, decode_message_untrusted, encode_message
from protocols.collective.settings import CollectiveSpec
from protocols.errors import RemoteProtocolError
from protocols.frames import Limits, unpack_untrusted
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord
from swarm.averaging.all_reduce import Averager
from swarm.collective.holder import History, Holder
from swarm.collective.info import MODE, OUTER
from swarm.collective.peer import CollectiveHooks, CollectivePeer
from swarm.data.errors import DataError
from swarm.endpoints import Endpoint
from swarm.learner.learner import Learner, TrainedBatch
from swarm.learner.pace import Pace
from swarm.learner.share import DataShare, claim_of
from swarm.learner.task import Evaluation, Task, open_task
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.presence import Presence
from swarm.resources import Resources
from swarm.state.export import write_tensors
from swarm.state.initial import InitialState, StartMisfitError
from swarm.state.manifest import MANIFEST_BYTES_MAX
from swarm.state.part import Part, PartFacts
from swarm.state.snapshot import expected_specs

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_FIRST_LOOK_S: Final = 3.0
"""Claims of others are waited for so long before a partition is claimed."""
_LOOK_S: Final = 1.0
_FORGET_S: Final = 30.0
"""A look that finds nobody may have met a slow directory. Who takes itself for alone goes on by itself, on a line of its own."""
_HEADER_BYTES: Final = 64 * 1024
_LIST_BYTES: Final = 4 << 20
_MISSED_MAX: Final = 3
"""Rounds missed in a row; more are a problem that a person should look at."""
_COMPLETE: Final = "nothing: all steps are trained; `murmura export PATH` writes the model"


class CollectiveMode:
    """One collective run on this node."""

    name = MODE
    batch_max = 1
    _run_step: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None
    """How one local step is done, where not on the compute thread."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._run = context.run
        self._spec = context.run.settings(CollectiveSpec)
        self._presence = Presence(
            context.host, context.directory, context.run.run_id, MODE, records=self._records
        )
        self._peer: CollectivePeer | None = None
        self._holder: Holder | None = None
        """Kept when the peer behind it is started again: the model goes on."""
        self._kept = False
        """The holder has more than the initial parameters."""
        self._share: DataShare | None = None
        self._claims: dict[PeerID, int] = {}
        self._named_s: dict[PeerID, float] = {}
        """When the directory named them last."""
        self._looked = trio.Event()
        self._left = trio.Event()
        self._problem = ""
        self._pace = Pace(context.run.training.batch)
        self._steps_trained = 0
        self._evaluation: Evaluation | None = None
        self._initial: InitialState | None = None
        """What a run with `[start]` begins from, as far as it is here."""

    @property
    def limits(self) -> Limits:
        """Answers are standings, means, manifests and chunks; and, with `[start]`, lists of a checkpoint's tensors."""
        header = _HEADER_BYTES if self._run.start is None else _LIST_BYTES
        return Limits(header_bytes_max=header, body_bytes_max=MANIFEST_BYTES_MAX, tensors_max=2)

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
            assert self._holder is not None
            self._peer = CollectivePeer(
                self._context,
                resources,
                self._holder,
                self._averager(resources),
                founds=founds and not self._kept,
                kept=self._kept,
                hooks=CollectiveHooks(
                    trained=self._trained,
                    evaluated=self._evaluated,
                    averaged=functools.partial(self._averaged, resources),
                    finished=functools.partial(self._finished, resources),
                    look=self._presence.look_now,
                    left=self._left.set,
                ),
                run_step=self._run_step,
            )
            self._kept = True
            try:
                await nursery.start(self._peer.run)
                self._context.life.has_state(self.name, "training a model of its own")
                self._tell_contacts()
                task_status.started()
                await self._look_until_begun()
                await trio.sleep_forever()
            finally:
                self._peer = None

    def _averager(self, resources: Resources) -> Averager:
        averager = Averager(
            self._context.me,
            resources.caller,
            resources.codec,
            spec=self._spec.averaging,
            codec=self._spec.codec,
            rng=random.Random(self._context.rng.getrandbits(64)),
            look=self._presence.look_now,
        )
        resources.caller.on_unreachable = averager.lost
        return averager

    async def _look_until_begun(self) -> None:
        """Look for members every second until the first step is trained."""
        while self._holder is not None and not self._holder.step:
            self._presence.look_now()
            await trio.sleep(_LOOK_S)

    async def _prepare(self, resources: Resources, *, founds: bool) -> bool:
        """Read the data, build the model, and load what there is of its state. False when that cannot be."""
        if self._holder is not None:
            return True
        self._context.life.needs_state(self.name, "reading the data")
        try:
            task = await trio.to_thread.run_sync(
                lambda: open_task(self._run, path=self._context.wishes.data)
            )
            share = self._share = DataShare(self._context.me, self._presence, task)
            if not founds:
                with trio.move_on_after(_FIRST_LOOK_S):
                    await self._looked.wait()
            self._claim()
            holder = await resources.compute.run_own(self._new_holder, task, share)
            resumed = await self._resume(holder, resources)
            await self._begin_from_start(holder, resources, wanted=not resumed)
        except (DataError, StartMisfitError) as error:
            self._problem = f"start: {error}" if isinstance(error, StartMisfitError) else str(error)
            log.error("does not train: %s", error)
            return False
        self._holder = holder
        return True

    def _new_holder(self, task: Task, share: DataShare) -> Holder:
        """On the compute thread. All peers begin with the same parameters."""
        learner = Learner(self._run, task, share.batches(), seed=self._run.seed)
        return Holder(learner, self._spec)

    # --- checkpoints ---

    async def _averaged(self, resources: Resources, *, last: bool = False) -> None:
        if self._is_over and not last:
            return  # the last rounds are not over: there is one checkpoint of them all
        for part in self.parts():
            await self._context.keeper.offer(part, resources.compute, last=last)

    async def _finished(self, resources: Resources) -> None:
        log.info("all steps are trained and averaged: steps=%d", self._run.training.steps)
        await self._averaged(resources, last=True)

    @property
    def _is_over(self) -> bool:
        return self._holder is not None and self._holder.step >= self._run.training.steps

    async def _begin_from_start(
        self, holder: Holder, resources: Resources, *, wanted: bool
    ) -> None:
        """Load the outer state that the run file names, from here or from others. Raises StartMisfitError."""
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
        _, own = await compute.run_own(holder.whole)
        tensors = await self._initial.tensors(expected_specs(own))
        histories = [History() for _ in holder.histories]
        await compute.run_own(holder.load, tensors, histories)
        holder.step = start.step

    async def _resume(self, holder: Holder, resources: Resources) -> bool:
        """Go on from the newest checkpoint that can be used; return whether there is one."""
        keeper = self._context.keeper
        found = await keeper.scan(self._run.training.steps + LAST_ROUNDS_MAX)
        _, own = await resources.compute.run_own(holder.whole)
        for checkpoint in found:
            manifest = checkpoint.manifest
            histories = histories_of(manifest.note_bytes, len(holder.histories))
            if manifest.part != OUTER or histories is None:
                continue
            tensors = await keeper.load(checkpoint, expected_specs(own))
            if tensors is None:
                continue
            await resources.compute.run_own(holder.load, tensors, histories)
            holder.step = manifest.data_position
            self._kept = True
            log.info("goes on from its checkpoint: step=%d", holder.step)
            return True
        return False

    def _facts(self, version: int) -> PartFacts:
        assert self._holder is not None
        fragments = tuple(fragment.standing for fragment in self._holder.kept())
        standing = encode_message(Standing(self._holder.step, fragments))
        return PartFacts(data_position=self._holder.step, note=bytes(msgpack.packb(standing)))

    # --- who takes part, and on which part of the data ---

    def _records(self, records: Sequence[DirectoryRecord]) -> None:
        now_s = trio.current_time()
        for record in records:
            claim = claim_of(record)
            if claim is not None:
                self._claims[record.peer] = claim
                self._named_s[record.peer] = now_s
        for peer in [p for p, named_s in self._named_s.items() if now_s > named_s + _FORGET_S]:
            del self._claims[peer], self._named_s[peer]
        self._looked.set()
        self._claim()
        self._tell_contacts()

    def _tell_contacts(self) -> None:
        if self._peer is not None:
            self._peer.contacts_found(tuple(self._claims))

    def _claim(self) -> None:
        if self._share is not None and not self._left.is_set():
            self._share.claim(
                self._claims, self._holder.learner if self._holder is not None else None
            )

    # --- leaving ---

    async def drain(self, deadline_s: float) -> None:
        """Tell the members, let rounds on their way end, and withdraw."""
        if self._peer is not None:
            self._peer.drain()
            with trio.move_on_after(max(1.0, deadline_s - 2.0)):
                await self._left.wait()
        self._left.set()
        with trio.move_on_after(2.0):
            await self._presence.withdraw()

    # --- how it goes ---

    def _trained(self, trained: TrainedBatch) -> None:
        self._steps_trained += 1
        self._pace.trained(trio.current_time(), trained.loss if trained.finite else None)

    def _evaluated(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def progress(self) -> Progress:
        peer, holder = self._peer, self._holder
        return Progress(
            in_run=peer is not None and peer.core.ready,
            role="trains" if peer is not None else "",
            step=holder.step if holder is not None else None,
            steps=self._run.training.steps,
            loss=self._pace.loss,
            held_out_loss=self._evaluation.loss if self._evaluation else None,
            samples_per_second=self._pace.samples_per_second,
            peers=len(self._claims) + 1,
            waiting_for=self._waiting_for(),
            resting=peer is not None and peer.core.waits_for_peers > 0,
            problems=tuple(filter(None, (self._problem, self._start_problem, self._missed))),
        )

    @property
    def _start_problem(self) -> str:
        problem = self._initial.problem if self._initial is not None else ""
        return problem and f"the checkpoint that the run begins from: {problem}"

    @property
    def _missed(self) -> str:
        """Say it when nothing has been averaged for some rounds."""
        missed = self._peer.core.missed_in_row if self._peer is not None else 0
        return f"the last {missed} rounds were missed" if missed > _MISSED_MAX else ""

    def _waiting_for(self) -> str | None:
        if self._peer is None:
            return None
        core = self._peer.core
        if core.finished:
            return _COMPLETE
        if core.starting:
            return "a member's outer parameters"
        if core.waits_for_peers:
            return f"{core.waits_for_peers} more peers to begin with"
        return "the mean of a round" if core.waiting_for_mean else None

    def detail(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "accuracy": self._evaluation.accuracy if self._evaluation else None,
            "partition": self._share.partition if self._share is not None else None,
            "data_problem": self._problem or None,
        }
        peer, holder = self._peer, self._holder
        if peer is None or holder is None:
            return status
        core, now_s = peer.core, trio.current_time()
        last_s = core.last_round_s
        exchanged = peer.bytes_exchanged
        return status | {
            "finished": core.finished,
            "steps_trained": self._steps_trained,
            "bytes_exchanged": exchanged,
            "bytes_per_step": round(exchanged / max(1, self._steps_trained)),
            "rounds": core.rounds,
            "rounds_missed": core.missed,
            "rounds_missed_in_row": core.missed_in_row,
            "last_round_seconds": None if last_s is None else round(now_s - last_s, 1),
            "group": len(peer.last_group),
            "joined_early": core.joined_early,
            "adoptions": core.whereabouts.adoptions,
            "rollbacks": core.rollbacks,
            "fragments": [
                {
                    "numbers": holder.fragments.size(index),
                    "averaged_at_step": fragment.version,
                    "line": fragment.line.hex()[:8],
                    "round": fragment.round,
                    "steps_not_averaged": fragment.trained,
                }
                for index, fragment in enumerate(core.fragments)
            ],
            "members": [{"peer_id": str(who)} for who in core.contacts],
        }

    # --- the model ---

    def parts(self) -> Sequence[Part]:
        holder = self._holder
        if holder is None or not holder.version:
            return ()

        def load(tensors: Mapping[str, Tensor]) -> None:
            holder.load(tensors, holder.histories)

        return (Part(OUTER, holder.version, holder.whole, load, self._facts),)

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the outer parameters: what all peers have learned together."""
        peer, holder = self._peer, self._holder
        if peer is None or holder is None or not peer.core.ready:
            raise ExportRefusedError("this node has not begun to train yet")
        about = {
            "run": self._run.name,
            "run_id": str(self._run.run_id),
            "step": holder.version,
        }

        def copied() -> dict[str, Tensor]:
            return holder.learner.hosted.layout.views(holder.outer.parameters.clone())

        tensors = await peer.on_model(copied)
        size_bytes = await trio.to_thread.run_sync(write_tensors, path, tensors, about)
        return {"path": str(path), **about, "bytes": size_bytes}


def histories_of(note: bytes, fragments: int) -> list[History] | None:
    """Read what a checkpoint says of its fragments' histories; None where it says nothing of so many."""
    try:
        standing = decode_message_untrusted(unpack_untrusted(note))
    except RemoteProtocolError:
        return None
    if not isinstance(standing, Standing) or len(standing.fragments) != fragments:
        return None
    return [History(fragment.version, fragment.lines) for fragment in standing.fragments]
