"""The state of the stage this node hosts: built, fetched, stepped, discarded and offered, in the order decided.

Rules of this file:
  - Whatever changes the state is a job in one queue, done in the order in which the ledger decided.
  - A job keeps the host it was decided for: a node that is moved cannot apply its old stage's step to the new one.
  - What a newcomer loads, and when, `protocols.state` decides. Steps committed meanwhile are applied after loading, all of
    them or none: a gap means that loading has failed and the lead is asked to admit us again.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import trio
from torch import Tensor

from protocols.core import Tick
from protocols.errors import LocalProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.ledger.events import Admitted
from protocols.ledger.messages import HeldState
from protocols.ledger.view import Record
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from protocols.state import (
    DonorsLeft,
    Effect,
    Event,
    FetchBroken,
    Fetched,
    FetchFrom,
    GiveUp,
    LoadFetched,
    RootNamed,
    StateFetch,
    StepCommitted,
)
from swarm.averaging.butterfly import clip_scale
from swarm.calls import Caller
from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import NonFiniteError
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.parts import part_name, stage_part, stage_specs
from swarm.pipeline.reduction import ReducedGradient
from swarm.pipeline.stage_host import StageHost
from swarm.state.part import Part
from swarm.state.transfer import Fetch, FetchedState, FetchError, Snapshots

log = logging.getLogger(__name__)

Job: TypeAlias = Callable[[], Awaitable[None]]

_JOBS_MAX: Final = 1024
"""One per decided record at most, and the ledger does not run that far ahead of a stage that is stuck."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A committed step that waits for the state."""

    record: Record
    reduced: ReducedGradient


class _Loading:
    """One admission on its way to a complete state: the core that decides, and what it wants done."""

    def __init__(self, admitted: Admitted, *, steps: int) -> None:
        self.admitted = admitted
        self.scope = trio.CancelScope()
        self.core: StateFetch[_Step] = StateFetch(
            admitted.donors, last=admitted.record.step >= steps
        )
        self._wanted: deque[Effect] = deque()
        self._changed = trio.Event()

    def start(self) -> None:
        self._want(self.core.start(trio.current_time()))

    def feed(self, event: Event[_Step]) -> None:
        self._want(self.core.handle(event))

    def _want(self, effects: Sequence[Effect]) -> None:
        self._wanted.extend(effects)
        self._changed.set()

    async def next_effect(self) -> Effect:
        """Wait until the core wants something."""
        while not self._wanted:
            self._changed = trio.Event()
            with trio.move_on_at(self.core.wake_at_s) as timer:
                await self._changed.wait()
            if timer.cancelled_caught:
                self.feed(Tick(trio.current_time()))
        return self._wanted.popleft()

    def keep(self, record: Record, reduced: ReducedGradient) -> None:
        """Keep a committed step for later."""
        step = _Step(record, reduced)
        self.feed(StepCommitted(trio.current_time(), step, reduced.mean.nbytes))

    def learned(self, record: Record) -> None:
        """See whether a record says what the state we fetch must be, and who can still give it."""
        now_s, admitted = trio.current_time(), self.admitted
        if record.commits_step and record.step == admitted.record.step + 1:
            self.feed(RootNamed(now_s, record.stages[admitted.stage].state_hash))
        self.feed(DonorsLeft(now_s, admitted.donors_in(record.view)))


@dataclass(slots=True)
class _Offer:
    """A snapshot promised to newcomers."""

    step: int
    root: bytes = b""
    taken: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOwner:
    """What the state needs of the peer it belongs to."""

    open_host: Callable[[HostedStage], StageHost]
    loaded: Callable[[], None]
    load_failed: Callable[[], None]


InitialTensors: TypeAlias = Callable[[Mapping[str, TensorSpec]], Awaitable[Mapping[str, Tensor]]]
"""Gives the state that a stage begins with, in a run that goes on from a checkpoint."""


class StageState:
    """The hosted stage of one node over time. Used from the event loop; `run` does the jobs."""

    def __init__(
        self,
        run: RunSpec,
        caller: Caller,
        compute: ComputeThread,
        codec: ComputeThread,
        *,
        owner: StateOwner,
        hooks: PeerHooks,
        rng: random.Random,
        initial: InitialTensors | None = None,
    ) -> None:
        self.host: StageHost | None = None
        self.stage: int | None = None
        """The one the ledger admitted us to; the host of another may still be there for a moment."""
        self._epoch = 0
        """In which the last step was committed."""
        self.fetched_bytes = 0
        self.fetch_seconds: float | None = None
        self.snapshots = Snapshots(self._part, compute, codec)
        self._run_spec = run
        self._steps = pipeline_of(run).steps
        self._initial = initial
        self._caller = caller
        self._compute = compute
        self._codec = codec
        self._owner = owner
        self._hooks = hooks
        self._rng = rng
        self._loading: _Loading | None = None
        self._built = trio.Event()
        self._offer: _Offer | None = None
        self.diverged = ""
        """Why a committed step could not be applied: the state of the step before is kept, and no further one follows."""
        self._send_job, self._jobs = trio.open_memory_channel[Job](_JOBS_MAX)

    async def run(self) -> None:
        """Do the jobs, one after the other, until cancelled. What a job raises ends this peer: its state is unknown."""
        async for job in self._jobs:
            await job()

    # --- what the ledger decides ---

    async def found(self, stage: int) -> None:
        """Build the initial state of the first stage of a run that begins."""
        self.stage = stage
        await self._build(stage)
        self._serve()

    async def resume(self, stage: int, tensors: Mapping[str, Tensor], epoch: int) -> HeldState:
        """Build a stage with the state of a checkpoint, before the ledger says that we host it."""
        hosted = await self._compute.run_own(HostedStage, self._run_spec, stage)
        await self._compute.run_own(hosted.load, tensors)  # refuses other names, shapes and dtypes
        self.stage, self._epoch = stage, epoch
        self.host = self._owner.open_host(hosted)
        self.host.committed_step = hosted.version
        self.host.loaded = True
        return HeldState(stage, hosted.version, epoch)

    def admitted(self, effect: Admitted) -> None:
        """Get the state of the stage we were admitted to; `owner.loaded` or `load_failed` says how it ended."""
        self._give_up_loading()
        self._loading = loading = _Loading(effect, steps=self._steps)
        self._epoch = effect.record.epoch
        self._built = trio.Event()
        self._offer = None
        self.stage = effect.stage
        self._hooks.syncing(f"loading stage {effect.stage} at step {effect.record.step}")
        self._job(functools.partial(self._load, loading))

    def learned(self, record: Record) -> None:
        """Take note of a decided record."""
        if self._loading is not None:
            self._loading.learned(record)

    def apply(self, record: Record, reduced: ReducedGradient) -> None:
        """Do the optimizer step of a record, when the state is there."""
        self._epoch = record.epoch
        if self._loading is not None:
            self._loading.keep(record, reduced)
            return
        assert self.host is not None
        self.host.committed_step = record.step
        self._job(functools.partial(self._step_and_open, self.host, record, reduced))

    def discard(self) -> None:
        """Accumulate from zero."""
        if self.host is not None and self.host.loaded:
            self.host.begin_discard()
            self._job(self.host.discard)

    def offer(self, step: int) -> None:
        """Keep a snapshot of the state of `step` for newcomers."""
        self._offer = offer = _Offer(step)
        self._job(functools.partial(self._take_offer, offer))

    def expelled(self) -> HeldState | None:
        """Stop what is under way; return the committed state that is left."""
        self._give_up_loading()
        self._offer = None
        self.discard()
        if self.host is None or not self.host.loaded:
            return None
        return HeldState(self.host.stage.stage, self.host.committed_step, self._epoch)

    # --- what the peer asks ---

    @property
    def complete(self) -> HostedStage | None:
        """The stage, when its state is that of a committed step."""
        if self.host is None or not self.host.loaded or self._loading is not None:
            return None
        return self.host.stage

    def parts(self) -> tuple[Part, ...]:
        """Return the stage as a part, when its state is complete."""
        hosted = self.complete
        return (stage_part(hosted),) if hosted is not None else ()

    def _part(self, name: str) -> Part | None:
        return next((part for part in self.parts() if part.name == name), None)

    async def built(self) -> StageHost:
        """Wait for the host of the stage we were admitted to; its gradient is all zeros until the state is there."""
        await self._built.wait()
        assert self.host is not None
        return self.host

    async def offered_root(self, step: int) -> bytes:
        """Return the hash of the snapshot that is offered of `step`; empty when none is."""
        offer = self._offer
        if offer is None or offer.step != step:
            return b""
        await offer.taken.wait()
        return offer.root

    # --- jobs ---

    def _job(self, job: Job) -> None:
        self._send_job.send_nowait(job)

    async def _take_offer(self, offer: _Offer) -> None:
        hosted = self.complete
        name = part_name(hosted.stage) if hosted is not None else ""
        snapshot = await self.snapshots.take(name, offered=True)
        if snapshot is not None and snapshot.manifest.version == offer.step:
            offer.root = snapshot.manifest.root
        offer.taken.set()

    async def _step_and_open(
        self, host: StageHost, record: Record, reduced: ReducedGradient
    ) -> None:
        if await self._step(host, record, reduced):
            host.open_step(record.step + 1)
            await self._hooks.stepped(stage_part(host.stage))

    async def _step(self, host: StageHost, record: Record, reduced: ReducedGradient) -> bool:
        """Apply a committed step; False when its numbers have diverged, which ends the run and keeps the state before it."""
        if self.diverged:
            return False
        scale = clip_scale(
            [stage.squared_norm for stage in record.stages],
            clip_norm=self._run_spec.optimizer.clip_norm,
        )
        apply = functools.partial(host.stage.apply_step, clip_scale=scale, step=record.step - 1)
        try:
            await self._compute.run_own(apply, reduced.mean)
        except NonFiniteError as error:
            self.diverged = str(error)
            log.error("step not applied, its numbers have diverged: step=%d %s", record.step, error)
        host.committed_step = host.stage.version
        return not self.diverged

    async def _build(self, stage: int) -> None:
        """Make the stage's module, with the run's initial weights."""
        hosted = await self._compute.run_own(HostedStage, self._run_spec, stage)
        await trio.lowlevel.checkpoint_if_cancelled()
        self.host = self._owner.open_host(hosted)
        self._built.set()

    # --- loading ---

    def _give_up_loading(self) -> None:
        if self._loading is not None:
            self._loading.scope.cancel()
            self._loading = None

    async def _load(self, loading: _Loading) -> None:
        """Get the state of the stage we were admitted to, then serve."""
        with loading.scope:
            await trio.lowlevel.checkpoint_if_cancelled()
            if await self._fill(loading) and await self._catch_up(loading):
                # From the last step applied to here nothing waits, so none can be missed.
                await trio.lowlevel.checkpoint_if_cancelled()
                self._loading = None
                self._serve()
                self._owner.loaded()
                return
            await trio.lowlevel.checkpoint_if_cancelled()
            if loading.admitted.synced:
                raise LocalProtocolError("steps went by that were not kept, and nothing is fetched")
            # Still loading, but nothing is kept any more: the lead admits us again, at the present step.
            self._hooks.syncing("the state could not be had: asking to be admitted anew")
            self._owner.load_failed()

    async def _fill(self, loading: _Loading) -> bool:
        """Bring the stage to the step at which we were admitted; False when nobody can give us that."""
        admitted = loading.admitted
        host = self.host
        if host is not None and host.loaded:
            if (host.stage.stage, host.stage.version) == (admitted.stage, admitted.record.step):
                self._built.set()
                return True
            host.loaded = False
        if admitted.synced and admitted.record.step != self._run_spec.first_step:
            raise LocalProtocolError("the ledger says that we hold a state which we do not")
        await self._build(admitted.stage)
        if admitted.synced and self._initial is not None:
            await self._begin_from(self._initial)
        return admitted.synced or await self._from_disk(admitted) or await self._fetch(loading)

    async def _from_disk(self, admitted: Admitted) -> bool:
        """Load the very state from our own disk, if it is there: nobody else may have it any more."""
        assert self.host is not None
        tensors = await self._hooks.on_disk(admitted.stage, admitted.record)
        if tensors is None:
            return False
        await self._compute.run_own(self.host.stage.load, tensors)
        log.info(
            "state loaded from our own disk: stage=%d step=%d", admitted.stage, admitted.record.step
        )
        return True

    async def _begin_from(self, initial: InitialTensors) -> None:
        """Put the state of the checkpoint that the run goes on from in the place of the run's own initial one."""
        assert self.host is not None
        hosted = self.host.stage
        tensors = await initial(await self._compute.run_own(stage_specs, hosted))
        await self._compute.run_own(hosted.load, tensors)

    async def _catch_up(self, loading: _Loading) -> bool:
        """Apply the steps that were committed meanwhile; False when one is missing."""
        assert self.host is not None
        while loading.core.kept:
            step = loading.core.kept.popleft()
            if step.record.step != self.host.stage.version + 1:
                return False
            if not await self._step(self.host, step.record, step.reduced):
                break
        return not loading.core.given_up

    def _serve(self) -> None:
        assert self.host is not None
        self.host.committed_step = self.host.stage.version
        self.host.loaded = True
        self.host.open_step(self.host.stage.version + 1)
        self._hooks.serving(f"hosting stage {self.stage}")

    async def _fetch(self, loading: _Loading) -> bool:
        """Do what the core decides, until the state is loaded; False when it cannot be had."""
        assert self.host is not None
        hosted = self.host.stage
        specs = await self._compute.run_own(stage_specs, hosted)
        state: FetchedState | None = None
        loading.start()
        while True:
            match await loading.next_effect():
                case FetchFrom(donors):
                    state = await self._fetch_from(loading, donors, specs)
                case LoadFetched():
                    assert state is not None
                    await self._compute.run_own(hosted.load, state.tensors)
                    self._note_fetched(state)
                    return True
                case GiveUp(reason):
                    log.warning("state given up: stage=%d reason=%s", hosted.stage, reason)
                    return False

    async def _fetch_from(
        self, loading: _Loading, donors: Sequence[PeerID], specs: Mapping[str, TensorSpec]
    ) -> FetchedState | None:
        """Try once, and tell the core how it ended."""
        stage = loading.admitted.stage
        fetch = Fetch(
            self._caller,
            self._codec,
            specs,
            part=part_name(stage),
            version=loading.admitted.record.step,
            progress=self._progress,
        )
        try:
            state = await fetch.run(self._rng.sample(donors, len(donors)))
        except FetchError as error:
            log.warning("state transfer failed: stage=%d reason=%s", stage, error)
            self._hooks.syncing(f"no state of stage {stage} yet: {error}")
            loading.feed(FetchBroken(trio.current_time(), str(error)))
            return None
        loading.feed(Fetched(trio.current_time(), state.donor, state.root))
        if loading.core.waits_for_root:
            self._hooks.syncing("waiting for the members to commit to the state's hash")
        return state

    def _progress(self, done: int, total: int) -> None:
        self._hooks.syncing(f"fetching stage {self.stage}: {done} of {total} bytes")

    def _note_fetched(self, state: FetchedState) -> None:
        self.fetched_bytes += state.byte_count
        self.fetch_seconds = state.seconds
        log.info(
            "state loaded: stage=%s step=%d bytes=%d seconds=%.2f",
            self.stage,
            state.version,
            state.byte_count,
            state.seconds,
        )
