"""One node's part in a pipeline run: feeds the cores, and does what they decide.

Everything here runs on the event loop and nothing decides: decisions are protocols.ledger's, tensor work is the
compute thread's.

    peers' casts --> Ledger --effects--> casts, reduction, the stage's state (swarm.pipeline.stage_state)
    records, leases, answers --> Trainer --effects--> calls to stages (swarm.pipeline.trainer_shell)
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, assert_never

import trio
from torch import Tensor

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from protocols.ledger.epoch import shown
from protocols.ledger.events import (
    FAREWELLS_MAX,
    Admitted,
    ApplyStep,
    DiscardGradient,
    Effect,
    Event,
    Expelled,
    FetchFailed,
    Heard,
    Learned,
    LedgerSettings,
    OfferState,
    ReduceFailed,
    ReduceFinished,
    Spread,
    StartReduce,
    StateLoaded,
    TallyChanged,
)
from protocols.ledger.grants import Verifier, statement
from protocols.ledger.member import Ledger
from protocols.ledger.messages import (
    HeldState,
    Lease,
    Message,
    Records,
    Rumour,
    decode_message_untrusted,
    encode_message,
)
from protocols.ledger.restart_messages import (
    Claim,
    GoBack,
    Running,
    decode_restart_untrusted,
)
from protocols.ledger.trainer import (
    AskClaim,
    AskSettle,
    AskStage,
    CallAnswered,
    CallFailed,
    CancelCall,
    ClaimAnswered,
    LeaseReceived,
    NodeLeaves,
    RecordLearned,
    ReleaseTensors,
    SettleAnswered,
    Trainer,
    TrainerEffect,
    TrainerEvent,
    TrainerTick,
)
from protocols.ledger.view import Member, Record
from protocols.ports import VerifySignature
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.calls import (
    CALL_FAILURES,
    Answer,
    Caller,
    CallError,
    CallTimeoutError,
    Guard,
    Incoming,
    PeerUnreachableError,
    Refusal,
    StreamClosedError,
)
from swarm.data.sequences import Dataset
from swarm.driver import Driver
from swarm.hosting.compute import ComputeThread
from swarm.pipeline.going_back import GoingBack
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.reduction import ReducedGradient, Reduction, ReductionFailedError
from swarm.pipeline.restarting import FromDisk, Restarting
from swarm.pipeline.reuniting import HistoryEndsError, Reuniting
from swarm.pipeline.stage_host import HostCounters, StageHost
from swarm.pipeline.stage_state import StageState, StateOwner
from swarm.pipeline.trainer_shell import TrainerShell
from swarm.state.initial import InitialState
from swarm.state.transfer import Snapshots

log = logging.getLogger(__name__)

LEDGER_SERVICE: Final = "ledger"
_PROBE_AFTER_S: Final = 0.2
_PROBE_S: Final = 1.0
_MUTED_S: Final = 0.5
_SAY_STEPS_S: Final = 10.0
"""Records that change no members are told so often; all of them at debug."""
_FAREWELL_S: Final = 5.0
"""Who does not hear by which record we left waits for us until its own drain is over. A busy machine may be slow to
answer; one that is gone is found out at once."""
_TRAINER_EVENTS: Final = (
    RecordLearned, LeaseReceived, CallAnswered, CallFailed, SettleAnswered, ClaimAnswered, TrainerTick, NodeLeaves,
)  # fmt: skip
AnyEvent: TypeAlias = Event | TrainerEvent


def ledger_settings(run: RunSpec) -> LedgerSettings:
    """Translate the run for the cores."""
    pipeline = pipeline_of(run)
    return LedgerSettings(
        stages=pipeline.stages,
        microbatches=pipeline.microbatches,
        steps=pipeline.steps,
        first_step=run.first_step,
        replicas_to_start=pipeline.replicas_to_start,
        evaluate_every=pipeline.evaluate_every,
        evaluation_microbatches=pipeline.evaluation_microbatches,
        silence_s=run.deadlines.floor_s,
        reduce_s=run.deadlines.ceiling_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartOptions:
    """For a node that comes back with checkpoints."""

    found: FromDisk
    folder: Path
    load: Callable[[Claim], Awaitable[Mapping[str, Tensor] | None]]
    """None when the file is not what it was when it was claimed."""
    new_epoch: bool = False
    gives_way: bool = False
    """The history on the disk has ended (swarm.pipeline.reuniting)."""


class PipelinePeer:
    """The ledger, the trainer and the hosted stage of one node.

    Args:
      founder: create the run instead of joining it.
      observer: host nothing; only train.
      stage: the stage we would like to host; None leaves it to the lead.
      in_flight: microbatches our trainer works on at once.
      initial: of a run that goes on from the checkpoint of another.
      given_up: whose history we have been in before, which ended: we join the other one.
      sign: with our identity: the leases that we deal as the lead.
    """

    def __init__(
        self,
        run: RunSpec,
        me: PeerID,
        caller: Caller,
        guard: Guard,
        compute: ComputeThread,
        codec: ComputeThread,
        *,
        sign: Callable[[bytes], bytes],
        verify: VerifySignature,
        rng: random.Random,
        hooks: PeerHooks,
        founder: bool = False,
        observer: bool = False,
        stage: int | None = None,
        in_flight: int = 4,
        restart: RestartOptions | None = None,
        initial: InitialState | None = None,
        given_up: HistoryEndsError | None = None,
    ) -> None:
        self.run_spec = run
        self.me = me
        self.hooks = hooks
        self.settings = ledger_settings(run)
        self.draining = False
        self.expulsions = 0
        self.counters = HostCounters()
        self.on_rumour: Callable[[Rumour], None] = lambda rumour: None
        """Takes what is to be published; whoever listens to the topic sets it."""
        self._founder = founder
        self._observer = observer
        self._wanted_stage = stage
        self._caller = caller
        self._guard = guard
        self._compute = compute
        self._codec = codec
        self._sign = sign
        self._grants = Verifier(run.run_id, verify)
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._driver: Driver[AnyEvent] = Driver(
            handle=self._dispatch, wake_at_s=self._next_wake_s, tick=self._tick
        )
        self._contacts: tuple[PeerID, ...] = ()
        self._probing: dict[PeerID, bool] = {}
        """Peers in doubt -> whether they were heard since."""
        self._last: Record | None = None
        self._companions: set[PeerID] = set()
        """Members before and after the last record."""
        self._beginning = False
        """The checkpoint is being loaded with which we become a member."""
        self._saying_farewell = False
        self._said_step_s = -math.inf
        self._reduce_scope: trio.CancelScope | None = None
        self._reduced: dict[bytes, ReducedGradient] = {}
        """By hash, of the next record only: what a record that is learned may name."""
        before = restart.found.disk.incarnation if restart is not None else None
        self._incarnation = rng.getrandbits(62) if before is None else before
        self._given_up = given_up
        self.ledger = self._new_ledger(None)
        self.restarting: Restarting | None = None
        """While this node is back from its disk, until it is in the run."""
        self.going_back = GoingBack(self, caller)
        self._restart_options = restart
        if restart is not None:
            self.restarting = Restarting(
                run.run_id, me, self._incarnation, self.settings, restart.found, caller, restart.folder,
                random.Random(rng.getrandbits(64)), new_epoch=restart.new_epoch,
                gives_way=restart.gives_way,
                begin=self._begin_again, note=hooks.record_learned,
            )  # fmt: skip
        self.reuniting = Reuniting(me, self.settings, caller, ledger=lambda: self.ledger)
        self.state = StageState(
            run,
            caller,
            compute,
            codec,
            owner=StateOwner(
                open_host=self._open_host,
                loaded=lambda: self.feed(StateLoaded(trio.current_time())),
                load_failed=lambda: self.feed(FetchFailed(trio.current_time())),
            ),
            hooks=hooks,
            rng=random.Random(rng.getrandbits(64)),
            initial=initial.tensors if initial is not None else None,
        )
        self.initial = initial
        if initial is not None:
            initial.members = self._other_members
            initial.syncing = hooks.syncing
        self.reduction = Reduction(
            me,
            caller,
            codec,
            is_member=lambda peer: peer in self.ledger.view,
            microbatches=pipeline_of(run).microbatches,
            wait_s=run.deadlines.ceiling_s,
        )
        self.trainer = Trainer(
            self.settings,
            random.Random(rng.getrandbits(64)),
            in_flight=in_flight,
            floor_s=run.deadlines.floor_s,
            ceiling_s=run.deadlines.ceiling_s,
        )
        self.trainer.paused = True  # until there is a dataset
        self.shell = TrainerShell(
            run,
            me,
            caller,
            answer_locally=self.answer_stage,
            feed=self.feed,
            unreachable=self.peer_unreachable,
        )

    @property
    def host(self) -> StageHost | None:
        """The hosted stage as trainers see it; None before the first one is built."""
        return self.state.host

    @property
    def snapshots(self) -> Snapshots:
        return self.state.snapshots

    # --- what the node calls ---

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.state.run)
            nursery.start_soon(self.going_back.run)
            if self._founder:
                await self._found()
            self._nursery = nursery
            if self.restarting is not None:
                nursery.start_soon(self.restarting.run)
            nursery.start_soon(self.reuniting.run)
            if self._given_up is not None:
                self.contacts_found(())
            self._caller.on_unreachable = self.peer_unreachable
            task_status.started()
            await self._driver.run()

    def train_on(self, dataset: Dataset) -> None:
        """Begin to train: from now on leases are asked for."""
        self.shell.dataset = dataset
        self.trainer.paused = False

    def drain(self) -> None:
        """Take nothing new and leave at the next boundary; `hooks.left` is called then."""
        self.draining = True
        self.trainer.paused = True
        self.feed(DrainWanted(trio.current_time()))

    def contacts_found(self, peers: Sequence[PeerID]) -> None:
        """The directory, or the transport, named peers that may be members."""
        known = [peer for peer in peers if not self._is_of_what_ended(peer)]
        if self._given_up is not None:
            known = list(dict.fromkeys((*self._given_up.theirs.view, *known)))
        self._contacts = tuple(known)
        self.feed(ContactsFound(trio.current_time(), self._contacts))

    def _is_of_what_ended(self, peer: PeerID) -> bool:
        """Tell whether it may still be in the history that we have given up, and would take us in again."""
        ended = self._given_up
        return ended is not None and peer in ended.ours.view and peer not in ended.theirs.view

    def rumour_heard(self, peer: PeerID, rumour: Rumour) -> None:
        """Somebody published this on the run's topic."""
        if self._is_of_what_ended(peer):
            return
        self.feed(Heard(trio.current_time(), peer, rumour))

    async def answer_ledger(self, incoming: Incoming) -> Answer:
        """Take one cast of the `ledger` service; a call is a probe and is answered with nothing."""
        if incoming.message is not None:
            message = decode_message_untrusted(incoming.message)
            if incoming.peer in self._probing:
                self._probing[incoming.peer] = True
            self._take(incoming.peer, message)
        return Answer()

    async def answer_restart(self, incoming: Incoming) -> Answer:
        """Take one cast of the `restart` service. Who is in the run, and can decide, says so to who is back."""
        message = decode_restart_untrusted(incoming.message)
        record = self.ledger.record
        if self.ledger.member is not None and record is not None:
            if isinstance(message, Running) and not self.draining:
                self.reuniting.told(incoming.peer, message.record)
            self.going_back.heard(incoming.peer, message, record)
        elif self.restarting is not None and not isinstance(message, GoBack):
            self.restarting.heard(incoming.peer, message)
        return Answer()

    async def answer_stage(self, incoming: Incoming) -> Answer:
        """Answer one call of the `stage` service."""
        if self.host is None:
            raise Refusal("not-here", "this node hosts no stage yet", 0.25)
        return await self.host.answer(incoming)

    async def answer_state(self, incoming: Incoming) -> Answer:
        """Answer one call of the `state` service: of our stage, or of the checkpoint that the run begins from."""
        if self.initial is not None and self.initial.is_asked(incoming.message):
            return await self.initial.snapshots.answer(incoming)
        return await self.snapshots.answer(incoming)

    async def answer_start(self, incoming: Incoming) -> Answer:
        """Answer one call of the `start` service."""
        if self.initial is None:
            raise Refusal("not-here", "this run begins at step 0")
        return await self.initial.answer(incoming)

    def knows(self, peer: PeerID) -> bool:
        """Tell whether records are to be expected from this peer."""
        restarting, record = self.restarting, self.ledger.record
        if restarting is not None and peer in restarting.core.members:
            return True
        looked_for = record is not None and any(peer in fork.absent for fork in record.forks)
        return looked_for or self.ledger.knows(peer)

    @property
    def diverged(self) -> str:
        """Say that the run cannot go on because its numbers have diverged; empty while they have not."""
        what = self.state.diverged or (self.host.diverged if self.host is not None else "")
        if not what and not self.shell.diverged:
            return ""
        what = what or "a stage says that its results are too large"
        step = self._last.step if self._last is not None else 0
        return (
            f"the numbers have diverged in step {step + 1} ({what}): the run stands still, and nobody is to blame. The last"
            " good state is kept, `murmura export PATH` writes it; a lower learning rate or a clip_norm may help"
        )

    def counts_on(self, peer: PeerID) -> bool:
        """Tell whether this is a member, or a trainer that holds a lease, as far as we know."""
        if peer in self.ledger.view:
            return True
        if self.ledger.lead is not None and self.ledger.lead.leases.held_by(peer):
            return True
        return self.host is not None and peer in self.host.trainers

    def peer_unreachable(self, peer: PeerID) -> None:
        """A stream could not be opened. Ask once more before anybody suspects the peer."""
        if self._nursery is not None and peer not in self._probing and peer != self.me:
            self._probing[peer] = False
            self._nursery.start_soon(self._probe, peer)

    # --- events and effects ---

    def feed(self, event: AnyEvent) -> None:
        """Let the cores take an event, and do what they say, before anything else happens."""
        self._driver.feed(event)

    def _dispatch(self, event: AnyEvent) -> None:
        if isinstance(event, _TRAINER_EVENTS):
            for trainer_effect in self.trainer.handle(event):
                self._do_trainer(trainer_effect)
            return
        ledger = self.ledger
        for effect in ledger.handle(event):
            self._do(effect)

    def _take(self, peer: PeerID, message: Message) -> None:
        if self._founder or self._is_muted:
            return
        now_s = trio.current_time()
        if isinstance(message, Lease) and peer in self.ledger.view:
            self.feed(LeaseReceived(now_s, peer, message))
        self.feed(Received(now_s, peer, message))

    def _signed(self, trainer: PeerID, lease: Lease) -> Lease:
        said = statement(self.run_spec.run_id, trainer, lease.grant(self.me))
        return dataclasses.replace(lease, signature=self._sign(said))

    def _send(self, effect: Send) -> None:
        if isinstance(effect.message, Lease):
            effect = Send(effect.peer, self._signed(effect.peer, effect.message))
        if effect.peer != self.me:
            self._caller.cast_nowait(effect.peer, LEDGER_SERVICE, encode_message(effect.message))
            return
        now_s = trio.current_time()
        if isinstance(effect.message, Lease):
            self.feed(LeaseReceived(now_s, self.me, effect.message))
        self.feed(Received(now_s, self.me, effect.message))

    def _do_trainer(self, effect: TrainerEffect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case AskStage() | AskSettle() | AskClaim() | CancelCall() | ReleaseTensors():
                assert self._nursery is not None
                self.shell.perform(effect, self._nursery)
            case _:
                assert_never(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect)
            case StartReduce():
                self._start_reduce(effect)
            case ApplyStep():
                self._apply(effect.record)
            case DiscardGradient():
                self.state.discard()
            case Admitted():
                log.info("admitted: stage=%d step=%d", effect.stage, effect.record.step)
                self.state.admitted(effect)
            case OfferState():
                self.state.offer(effect.step)
            case Expelled():
                self._expelled(effect)
            case Learned():
                self._learned(effect.record)
            case Spread():
                self.on_rumour(effect.rumour)
            case Blame():
                self._guard.fault(effect.peer, RemoteProtocolError(effect.reason, effect.peer))
            case _:
                assert_never(effect)

    # --- time ---

    def _tick(self, now_s: float) -> None:
        if now_s >= self.ledger.wake_at_s and not self._is_muted:
            self.feed(Tick(now_s))
        if now_s >= self.trainer.wake_at_s:
            self.feed(TrainerTick(now_s))

    def _next_wake_s(self) -> float:
        """The trainer asks whom the ledger takes for the lead."""
        lead = self.ledger.lead_peer
        if lead is not None:
            self.trainer.rewire(lead)
        ledger_s = trio.current_time() + _MUTED_S if self._is_muted else self.ledger.wake_at_s
        return min(ledger_s, self.trainer.wake_at_s)

    # --- back from the disk ---

    @property
    def _is_muted(self) -> bool:
        """Nobody is asked to let us in, nor believed that it did, while we may be about to begin an epoch."""
        return self._beginning or (self.restarting is not None and self.restarting.mutes_ledger)

    def _begin_again(self, record: Record, claim: Claim) -> None:
        assert self._nursery is not None
        self._beginning = True
        self._nursery.start_soon(self._load_and_begin, record, claim)

    async def _load_and_begin(self, record: Record, claim: Claim) -> None:
        """Become a member by the first record of an epoch, with the state that it goes on from."""
        assert self._restart_options is not None
        assert self.restarting is not None
        await self.restarting.begins()
        holds: HeldState | None = None
        tensors = await self._restart_options.load(claim)
        if tensors is not None:
            holds = await self.state.resume(claim.stage, tensors, record.epoch)
        log.warning(
            "epoch %s begins: step=%d members=%d",
            shown(record.epoch),
            record.step,
            len(record.members),
        )
        self.ledger = self._new_ledger(holds, begins_with=record)
        self._beginning = False
        for effect in self.ledger.start():
            self._do(effect)
        self.feed(ContactsFound(trio.current_time(), self._contacts))

    # --- membership ---

    def _new_ledger(self, holds: HeldState | None, begins_with: Record | None = None) -> Ledger:
        incarnation = self._rng.getrandbits(62) if begins_with is None else self._incarnation
        return Ledger(
            self.me,
            incarnation,
            self.settings,
            random.Random(self._rng.getrandbits(64)),
            founder=self._founder,
            observer=self._observer,
            stage=self._wanted_stage,
            holds=holds,
            begins_with=begins_with,
            now_s=trio.current_time(),
        )

    async def _found(self) -> None:
        """Begin the run. Whoever knocks before it has begun is not heard, and knocks again."""
        if self.initial is None:
            await self.state.found(self._wanted_stage or 0)
        self._founder = False
        for effect in self.ledger.start():
            self._do(effect)
        if self.initial is not None:
            # Like any other first member: others may be needed for what is not on this disk.
            record = self.ledger.record
            assert record is not None
            self.state.admitted(Admitted(record, self._wanted_stage or 0, (), synced=True))

    def _other_members(self) -> list[PeerID]:
        return [peer for peer in self.ledger.view if peer != self.me]

    def _learned(self, record: Record) -> None:
        before = self._last.members if self._last is not None else ()
        self._companions = {member.peer for member in (*before, *record.members)} - {self.me}
        self._last = record
        if self.ledger.member is not None:  # the record names this life, not the one before
            self._given_up = None
            if self.restarting is not None:
                self.restarting.in_run()
        self.state.learned(record)
        self._stop_reducing()
        self.reduction.decided(record.index)
        if record.commits_step:
            self.shell.diverged = False
        log.log(
            self._level_of(record, before),
            "record learned: index=%d step=%d members=%d lead=%s%s",
            record.index,
            record.step,
            len(record.members),
            record.lead.short,
            f" loss={record.loss:.4f}" if record.loss is not None else "",
            extra={"step": record.step},
        )
        self.hooks.record_learned(record)
        if self._observer:
            self.hooks.serving("trains, hosts no stage")
        self.feed(RecordLearned(trio.current_time(), record, self.ledger.lead_peer or record.lead))

    def _level_of(self, record: Record, before: Sequence[Member]) -> int:
        """A fast run commits twenty steps a second: the one line that matters must not drown in those."""
        now_s = trio.current_time()
        if record.members == before and now_s < self._said_step_s + _SAY_STEPS_S:
            return logging.DEBUG
        self._said_step_s = now_s
        return logging.INFO

    def _expelled(self, effect: Expelled) -> None:
        log.warning("no longer a member: reason=%s", effect.reason)
        self._stop_reducing()
        self._reduced.clear()
        holds = self.state.expelled()
        if self.draining and (effect.let_go or holds is None):
            self._leave()
            return
        self.expulsions += 1
        self.ledger = self._new_ledger(holds)
        self.hooks.syncing(f"joining again: {effect.reason}")
        now_s = trio.current_time()
        self.feed(ContactsFound(now_s, self._contacts))
        if (
            self.draining
        ):  # others may need the state we hold, so we go back in with it, to leave again
            self.feed(DrainWanted(now_s))

    def _leave(self) -> None:
        if self._nursery is None:
            self.hooks.left()
        elif not self._saying_farewell:
            self._saying_farewell = True
            self.feed(NodeLeaves(trio.current_time()))
            self._nursery.start_soon(self._say_farewell)

    async def _say_farewell(self) -> None:
        """Make sure that those we were with know the record by which we go: perhaps nobody else can tell them."""
        with trio.move_on_after(_FAREWELL_S):
            async with trio.open_nursery() as nursery:
                companions = sorted(self._companions) if self._last is not None else []
                if len(companions) > FAREWELLS_MAX:
                    companions = self._rng.sample(companions, FAREWELLS_MAX)
                for peer in companions:
                    nursery.start_soon(self._tell_last_record, peer)
        self.hooks.left()

    async def _tell_last_record(self, peer: PeerID) -> None:
        assert self._last is not None
        news = encode_message(Records((self._last,), self._last.index))
        with suppress(*CALL_FAILURES):
            await self._caller.call(peer, LEDGER_SERVICE, news, deadline_s=_FAREWELL_S)

    async def _probe(self, peer: PeerID) -> None:
        """Try to reach a peer that seemed gone; report it down when that fails as well."""
        await trio.sleep(_PROBE_AFTER_S)
        try:
            with suppress(CallError, StreamClosedError, RemoteProtocolError):  # an answer, too
                await self._caller.call(peer, LEDGER_SERVICE, None, deadline_s=_PROBE_S)
        except (PeerUnreachableError, CallTimeoutError):
            if not self._probing[peer]:
                log.warning("peer down: peer=%s", peer)
                self.feed(PeerDown(trio.current_time(), peer))
        finally:
            self._probing.pop(peer, None)

    # --- the stage ---

    def _open_host(self, stage: HostedStage) -> StageHost:
        return StageHost(
            self.run_spec,
            stage,
            compute=self._compute,
            codec=self._codec,
            counters=self.counters,
            grants=self._grants,
            ledger=lambda: self.ledger,
            changed=lambda broken: self.feed(TallyChanged(trio.current_time(), broken)),
            refuses_work=self._refuses_work,
        )

    def _refuses_work(self) -> str | None:
        if not self.draining:
            return self.hooks.refuses_work()
        # The last one that holds a stage's state serves it until another one does.
        return None if self.ledger.asked_to_stay else "this node is leaving"

    def _apply(self, record: Record) -> None:
        assert self.state.stage is not None
        reduced = self._reduced[record.stages[self.state.stage].gradient_hash]
        self._reduced.clear()
        self.state.apply(record, reduced)

    # --- reducing ---

    def _start_reduce(self, effect: StartReduce) -> None:
        self._stop_reducing()
        if self.ledger.broken and self.ledger.synced:
            return  # our gradient is of no use: the lead has been told, and fences us
        self._reduce_scope = trio.CancelScope()
        assert self._nursery is not None
        self._nursery.start_soon(self._reduce, effect, self._reduce_scope)

    def _stop_reducing(self) -> None:
        if self._reduce_scope is not None:
            self._reduce_scope.cancel()
            self._reduce_scope = None

    async def _reduce(self, asked: StartReduce, scope: trio.CancelScope) -> None:
        with scope:
            host = await self.state.built()
            try:
                reduced = await self.reduction.reduce(asked, host.stage.gradient())
            except ReductionFailedError as failure:
                log.warning("reduction failed: step=%d reason=%s", asked.step, failure)
                now_s = trio.current_time()
                self.feed(ReduceFailed(now_s, asked.index, asked.ballot, failure.peer))
                return
            state_hash = await self.state.offered_root(asked.step - 1)
            # The compute threads finish what they began: a reduction that was stopped may get this far.
            await trio.lowlevel.checkpoint_if_cancelled()
            self._reduced = {h: r for h, r in self._reduced.items() if r.index == asked.index}
            self._reduced[reduced.gradient_hash] = reduced
            self.feed(
                ReduceFinished(
                    trio.current_time(),
                    asked.index,
                    asked.ballot,
                    reduced.gradient_hash,
                    reduced.squared_norm,
                    host.loss_sum(),
                    state_hash,
                )
            )
