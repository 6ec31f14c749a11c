"""A pipeline run as a mode: composes a peer with what the node gives, and says how it goes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio
from torch import Tensor

from protocols.frames import Limits
from protocols.ledger.epoch import shown
from protocols.ledger.member import Ledger
from protocols.ledger.restart_messages import Claim
from protocols.ledger.view import Record, is_of_history
from protocols.run.pipeline import pipeline_of
from protocols.schema import encode
from swarm.data.errors import DataError
from swarm.endpoints import Endpoint
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.pipeline.data import load_dataset
from swarm.pipeline.export import export_run
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.info import JOURNAL, MODE
from swarm.pipeline.journal import Journal
from swarm.pipeline.parts import part_name
from swarm.pipeline.peer import PipelinePeer, RestartOptions
from swarm.pipeline.restarting import read_disk
from swarm.pipeline.reuniting import HistoryEndsError
from swarm.pipeline.services import JOINED_MICROBATCHES, PeerOptions, limits_of, open_peer, wire_of
from swarm.presence import Presence
from swarm.resources import Resources
from swarm.state.initial import InitialState
from swarm.state.part import Part, PartFacts
from swarm.state.transfer import FetchError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

_STEPS_LATELY: Final = 64
"""A stage is applied that many steps late at most; then its peer is no member any more."""
_COMPLETE: Final = "nothing: the run is complete; `murmura export PATH` writes the model"


class OutlivedError(Exception):
    """This life in the run is over; the supervisor begins the next."""


class PipelineMode:
    """One pipeline run on this node."""

    name = MODE
    batch_max = JOINED_MICROBATCHES

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._run = context.run
        self._spec = pipeline_of(context.run)
        self._peer: PipelinePeer | None = None
        self._resources: Resources | None = None
        self._presence = Presence(
            context.host,
            context.directory,
            context.run.run_id,
            MODE,
            found=lambda peers: self._peer.contacts_found(peers) if self._peer else None,
        )
        self._left = trio.Event()
        self._data_problem = ""
        self._last: Record | None = None
        self._last_step: Record | None = None
        self._steps_lately: dict[int, Record] = {}
        """By step, the records that committed the last ones."""
        self._complete = False
        """The last step of the run is committed; nothing goes on any more."""
        self._held_out: float | None = None
        self._step_s: float | None = None
        self._seconds_per_step: float | None = None
        self._journal_problem = ""
        self._journal = Journal(context.folder / JOURNAL)
        self._begun = False
        self._given_up: HistoryEndsError | None = None
        """Until this node is in the other history."""
        self._came_with: Record | None = None
        """The newest record of what is on this node's disk, until it is in the run."""
        self._gave_up = ""
        """What became of the last history that this node has given up."""
        self._goes_back = False
        """This life in the run is over: the next one begins with what is on the disk."""
        self._initial: InitialState | None = None

    @property
    def limits(self) -> Limits:
        return limits_of(self._run)

    # --- what the node calls ---

    def wire(self) -> Mapping[str, Endpoint]:
        return wire_of(self._peer) if self._peer is not None else {}

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        context, wishes = self._context, self._context.wishes
        fresh = not self._begun or self._goes_back or self._given_up is not None
        restart = await self._from_disk() if fresh else None
        self._goes_back = False
        # Who has been in the run before does not begin it anew: it goes on from its disk, or joins.
        founder = restart is None and await context.founding()
        options = PeerOptions(
            founder=founder and not self._begun,  # a restarted service joins the run that it began
            observer=not wishes.host,
            restart=restart,
            stage=wishes.stage,
            initial=self._initial_state(resources),
            given_up=self._given_up,
        )
        rng = random.Random(context.rng.getrandbits(64))
        async with (
            open_peer(
                self._run,
                context.host,
                context.guard,
                resources,
                options,
                signer=context.signer,
                verify=context.verify,
                rng=rng,
                hooks=self._hooks(),
            ) as peer,
            trio.open_nursery() as nursery,
        ):
            self._peer, self._resources = peer, resources
            self._begun = True
            self._note_membership()
            nursery.start_soon(self._prepare_data, peer)
            nursery.start_soon(self._presence.run)
            task_status.started()
            try:
                await peer.going_back.due.wait()
                await self._go_back()
            finally:
                self._note_end(peer)
                self._peer = self._resources = None

    def _note_end(self, peer: PipelinePeer) -> None:
        """When another history stays, this service fails, and is begun again as a newcomer to that one."""
        if peer.reuniting.ended is not None:
            self._given_up = peer.reuniting.ended
            self._came_with = self._given_up.ours
            self._last, self._complete = None, False
            log.warning("%s", self._given_up)

    async def _go_back(self) -> None:
        """End this life if there is something on the disk to go on from. Raises OutlivedError, else never returns."""
        if await self._from_disk() is None:
            log.warning("this run cannot go on as it is, and nothing is on the disk here")
            await trio.sleep_forever()
        self._goes_back = True
        raise OutlivedError(
            "this run cannot go on as it is: back to the disk, to agree with the others"
        )

    async def drain(self, deadline_s: float) -> None:
        """Finish the step in progress if there is time, hand over by leaving the view, and withdraw."""
        if self._peer is None:
            return
        self._peer.drain()
        with trio.move_on_after(max(1.0, deadline_s - 2.0)):
            if self._peer.ledger.member is not None:
                await self._left.wait()
        with trio.move_on_after(2.0):
            await self._presence.withdraw()

    def progress(self) -> Progress:
        peer = self._peer
        ledger = peer.ledger if peer is not None else None
        member = ledger.member if ledger is not None else None
        diverged = peer.diverged if peer is not None else ""
        role = "" if peer is None else "trains" if not self._context.wishes.host else "joins"
        return Progress(
            in_run=self._last is not None,
            role=f"stage {member.stage}" if member is not None else role,
            step=self._last.step if self._last is not None else None,
            steps=self._spec.steps,
            loss=self._last_step.loss if self._last_step is not None else None,
            held_out_loss=self._held_out,
            samples_per_second=self._samples_per_second(),
            peers=len(ledger.view) if ledger is not None else 0,
            waiting_for=self._waiting_for(ledger) if ledger is not None else None,
            resting=ledger is not None and self._waits_to_begin(ledger),
            problems=tuple(
                filter(
                    None,
                    (
                        diverged,
                        self._start_problem,
                        self._vote_problem,
                        str(self._given_up or ""),
                        self._data_problem,
                        self._journal_problem,
                    ),
                )
            ),
        )

    def detail(self) -> dict[str, Any]:
        rate = self._samples_per_second()
        status: dict[str, Any] = {
            "tokens_per_second": None
            if rate is None
            else round(rate * self._spec.model.context, 1),
            "data_problem": self._data_problem or None,
            "journal_problem": self._journal_problem or None,
            "history_given_up": self._gave_up or None,
        }
        peer = self._peer
        if peer is None or self._resources is None:
            return status
        ledger = peer.ledger
        lead = ledger.lead
        status |= {
            "stage": ledger.member.stage if ledger.member is not None else None,
            "member": ledger.member is not None,
            "synced": ledger.synced,
            "index": ledger.record.index if ledger.record is not None else None,
            "lead": str(ledger.lead_peer) if ledger.lead_peer is not None else None,
            "leading": lead is not None,
            "asked_to_stay": ledger.leaving and ledger.asked_to_stay,
            "members_by_stage": [len(ledger.view.replicas(s)) for s in range(self._spec.stages)],
            "members": [
                {"peer_id": str(member.peer), "stage": member.stage}
                for member in ledger.view.members
            ],
            "training": not peer.trainer.paused,
            "microbatches_in_flight": sum(
                1 for journey in peer.trainer.journeys.values() if not journey.finished
            ),
            "tensors_held_bytes": peer.shell.bytes_held,
            "expulsions": peer.expulsions,
            "state_fetched_bytes": peer.state.fetched_bytes,
            "state_fetch_seconds": peer.state.fetch_seconds,
        }
        if peer.host is not None:
            counters = peer.counters
            status |= {
                "calls_served": counters.served,
                "calls_refused": counters.refused,
                "microbatches_counted": counters.counted,
                "counting_step": ledger.tally.step,
                "microbatches_counted_in_step": ledger.tally.counted.bit_count(),
                "queue": self._resources.compute.waiting,
                "compute_busy_seconds": round(self._resources.compute.stats.busy_s, 3),
            }
        return status

    def parts(self) -> Sequence[Part]:
        parts = self._peer.state.parts() if self._peer is not None else ()
        return [dataclasses.replace(part, facts=self._facts) for part in parts]

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the whole model, gathering stages from peers."""
        peer, resources = self._peer, self._resources
        if peer is None or resources is None:
            raise ExportRefusedError("this node has not begun to train yet")
        try:
            return await export_run(peer, resources, path)
        except FetchError as error:
            raise ExportRefusedError(f"nothing was written to {path}: {error}") from error

    # --- pieces ---

    def _waiting_for(self, ledger: Ledger) -> str | None:
        if self._complete and not ledger.leaving:
            return _COMPLETE
        peer = self._peer
        if peer is not None and peer.restarting is not None and peer.restarting.mutes_ledger:
            return peer.restarting.core.waiting_because
        why = ledger.waiting_because or (ledger.lead.waiting_for() if ledger.lead else None)
        if why is None and ledger.member is not None and not ledger.synced:
            return f"the state of stage {ledger.member.stage}, from a member that has it"
        return why

    @property
    def _start_problem(self) -> str:
        problem = self._initial.problem if self._initial is not None else ""
        return problem and f"the checkpoint that the run begins from: {problem}"

    @property
    def _vote_problem(self) -> str:
        restarting = self._peer.restarting if self._peer is not None else None
        return restarting.problem if restarting is not None else ""

    def _waits_to_begin(self, ledger: Ledger) -> bool:
        """Tell whether the run has not begun because it wants more peers for that."""
        begun = self._last is None or self._last.step > self._run.first_step or ledger.tally.counted
        return not begun and not ledger.view.staffed(
            self._spec.stages, self._spec.replicas_to_start
        )

    def _hooks(self) -> PeerHooks:
        life = self._context.life
        return PeerHooks(
            record_learned=self._record_learned,
            syncing=self._syncing,
            serving=lambda reason: life.has_state(self.name, reason),
            left=self._left.set,
            refuses_work=self._context.refuses_work,
            stepped=self._stepped,
            on_disk=self._on_disk,
        )

    async def _on_disk(self, stage: int, record: Record) -> Mapping[str, Tensor] | None:
        """Return the state of a stage after a record, when it was written here: an epoch has one history."""
        keeper = self._context.keeper
        for checkpoint in await keeper.scan(self._spec.steps):
            manifest = checkpoint.manifest
            if manifest.part == part_name(stage) and manifest.order == (record.epoch, record.step):
                return await keeper.load(checkpoint, None)
        return None

    async def _from_disk(self) -> RestartOptions | None:
        """Return what this node can go on from; None when it is nothing, or when it is to start anew."""
        wishes, keeper = self._context.wishes, self._context.keeper
        if not wishes.host or wishes.begin_anew:
            return None
        # Whole before it is claimed: others will count on it.
        verified = [
            checkpoint
            for checkpoint in await keeper.scan(self._spec.steps)
            if await keeper.load(checkpoint, None) is not None
        ]
        folder = self._context.folder
        run = self._run.run_id
        found = await trio.to_thread.run_sync(read_disk, folder, folder / JOURNAL, run, verified)
        if found is None:
            return None

        async def load(claim: Claim) -> Mapping[str, Tensor] | None:
            step = found.steps[claim.lineage]
            self._steps_lately[step.step] = step
            return await keeper.load(found.checkpoints[claim.root], None)

        log.info("back with checkpoints: newest_step=%d", found.disk.claims[0].step)
        self._came_with = found.disk.newest
        return RestartOptions(
            found=found,
            folder=folder,
            load=load,
            new_epoch=wishes.new_epoch and not self._begun,  # a word for one start
            gives_way=self._given_up is not None,
        )

    def _initial_state(self, resources: Resources) -> InitialState | None:
        start = self._run.start
        if start is None:
            return None
        folder = self._context.folder
        caller, codec = resources.caller, resources.codec
        self._initial = InitialState(start, folder, caller, codec, parts=self._spec.stages)
        return self._initial

    async def _stepped(self, part: Part) -> None:
        if self._resources is not None:
            part = dataclasses.replace(part, facts=self._facts)
            last = part.version >= self._spec.steps  # no later one will make up for it
            await self._context.keeper.offer(part, self._resources.compute, last=last)

    def _facts(self, version: int) -> PartFacts:
        """Keep the record that committed the step with the state after it: it says whose history this is."""
        record = self._steps_lately.get(version)
        if record is None:
            return PartFacts(epoch=self._last.epoch if self._last is not None else 0)
        return PartFacts(epoch=record.epoch, note=bytes(msgpack.packb(encode(record))))

    async def _prepare_data(self, peer: PipelinePeer) -> None:
        """Read the text and begin to train; without it this node still hosts its stage."""
        wishes = self._context.wishes
        if not wishes.train:
            return
        load = functools.partial(
            load_dataset, self._run, path=wishes.data, memory_max_bytes=wishes.memory_max_bytes
        )
        try:
            # A pattern may name a whole machine: a node that is asked to leave does not wait for its end.
            dataset = await trio.to_thread.run_sync(load, abandon_on_cancel=True)  # type: ignore[call-arg]
        except DataError as error:
            self._data_problem = str(error)
            log.error("does not train: %s", error)
            return
        peer.train_on(dataset)

    def _syncing(self, reason: str) -> None:
        """Called when a stage's state is to be loaded, and when this node has been expelled."""
        self._context.life.needs_state(self.name, reason)
        self._note_membership()

    def _note_membership(self) -> None:
        """Members are in the directory; outsiders look there. One that has left does neither."""
        member = self._peer is not None and self._peer.ledger.member is not None
        self._presence.announce(b"" if member else None)
        self._presence.search(searching=not member and not self._left.is_set())

    def _record_learned(self, record: Record) -> None:
        self._last = record
        peer = self._peer
        if self._came_with is not None and peer is not None and peer.ledger.member is not None:
            self._is_in(record, self._came_with)
        self._note_membership()
        if record.step >= self._spec.steps and not self._complete:
            self._complete = True
            log.info("the run is complete: steps=%d, `murmura export PATH` writes it", record.step)
        if record.commits_step:
            now_s = trio.current_time()
            if self._step_s is not None:
                seconds = now_s - self._step_s
                before = self._seconds_per_step
                self._seconds_per_step = seconds if before is None else 0.8 * before + 0.2 * seconds
            self._step_s = now_s
            self._last_step = record
            self._steps_lately[record.step] = record
            self._steps_lately.pop(record.step - _STEPS_LATELY, None)
            if record.held_out_loss is not None:
                self._held_out = record.held_out_loss
        self._write_down(record)

    def _is_in(self, record: Record, came_with: Record) -> None:
        """We are in the run. If it is another history than our disk's, nothing there may ever be taken for a part of it."""
        self._given_up = self._came_with = None
        if is_of_history(record, came_with.epoch, 0):
            return
        where = self._context.keeper.put_aside()
        self._journal.put_aside()
        self._steps_lately.clear()
        self._gave_up = (
            f"epoch {shown(came_with.epoch)} at step {came_with.step}, for epoch {shown(record.epoch)} at step {record.step};"
            f" its checkpoints are in {where}"
        )
        log.warning("joined another history of the run, and gave up %s", self._gave_up)

    def _write_down(self, record: Record) -> None:
        """Keep a record in the journal. Training does not need it: on a full disk it goes on and says so."""
        try:
            self._journal.append(record)
        except OSError as error:
            self._journal_problem = f"records are not written to the journal: {error.strerror}"
            log.error("record not written to the journal: %s", error.strerror)
        else:
            self._journal_problem = ""

    def _samples_per_second(self) -> float | None:
        if self._seconds_per_step is None:
            return None
        return round(self._run.training.batch / self._seconds_per_step, 3)
