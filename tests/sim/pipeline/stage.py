"""The hosted stage of a simulated peer: a few lines in place of the compute thread, the reduction and the state transfer.

A "gradient" is a Counter of microbatches, so the checkers see what was really summed; a "state" is a digest of all
gradients applied so far. What the real shells promise each other is kept here too: a snapshot is of one step and is
kept for the last two newcomers. What a newcomer loads, and when, the real core decides (protocols.state).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from protocols.core import Tick
from protocols.ids import PeerID
from protocols.ledger.events import (
    Admitted,
    FetchFailed,
    ReduceFailed,
    ReduceFinished,
    StartReduce,
    StateLoaded,
    TallyChanged,
)
from protocols.ledger.grants import Grant
from protocols.ledger.tally import Attempt, Refusal, Settled, Tally, Work
from protocols.ledger.trainer import (
    AskClaim,
    AskSettle,
    AskStage,
    CallAnswered,
    CallFailed,
    ClaimAnswered,
    SettleAnswered,
    TrainerEvent,
)
from protocols.ledger.view import MICROBATCHES_MAX, Ballot, Record, ids_of
from protocols.replies import ErrorCode
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
from tests.sim.engine.compute import SimCompute
from tests.sim.pipeline.exchange import Gradient, digest_of
from tests.sim.pipeline.notes import Counted, SaidVoid

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer

INITIAL_STATE = b"initial"
REPLAY_MAX = 8
"""Reduced gradients a newcomer keeps while it fetches; a transfer that takes more steps starts over."""
_SNAPSHOTS_KEPT = 2
_BACKWARD = 2.5

MakeEvent: TypeAlias = Callable[[float], TrainerEvent]
"""The answer to a call, built when it arrives."""


def state_root(state: bytes) -> bytes:
    """Hash a state, as a manifest's root does."""
    return hashlib.sha256(b"root" + state).digest()


def signature_for(lead: PeerID, trainer: PeerID) -> bytes:
    """Return what stands for a lead's signature of a lease to this trainer. Strangers that lie do not call this."""
    return lead + b" to " + trainer


class Caller(Protocol):
    """Who asked, as far as the member can know."""

    @property
    def trainer_id(self) -> PeerID: ...

    def wanted(self) -> bool:
        """Tell whether the answer is still waited for."""
        ...

    def answer(self, make: MakeEvent) -> None: ...


@dataclass(slots=True)
class _Reduction:
    asked: StartReduce
    since_s: float


@dataclass(slots=True)
class _Fetch:
    """A state transfer, named by the record that admitted us: the core that decides, and what has come."""

    asked: Admitted
    core: StateFetch[tuple[Record, Gradient]]
    fetched: bytes = b""


class SimStage:
    """Gradient, state, queue and transfers of one peer. The peer forwards the ledger's effects and trainers' calls."""

    def __init__(self, peer: PipelinePeer) -> None:
        self.peer = peer
        self.world = peer.world
        self.gradient_changes = 0
        """How often the gradient became another one than before."""
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a fresh process does."""
        self.stage: int | None = None
        self.state, self.step, self.loaded = INITIAL_STATE, self.world.first_step, False
        self.forget_work()
        self.snapshots: dict[int, bytes] = {}
        self._offered: int | None = None
        self.compute = SimCompute(self.peer)
        self.discarding = 0

    def forget_work(self) -> None:
        """Drop the gradient and all exchanges, keep the state: what an expelled peer does."""
        self._reset_gradient()
        self.finished: dict[bytes, Gradient] = {}
        self._reduction: _Reduction | None = None
        self._done: StartReduce | None = None
        self._fetch: _Fetch | None = None
        self.world.exchanges.changed()

    def host(self, stage: int, *, state: bytes = INITIAL_STATE, step: int | None = None) -> None:
        """Hold this state from now on; without a step that which the run begins from."""
        step = self.world.first_step if step is None else step
        self.stage, self.state, self.step, self.loaded = stage, state, step, True
        self.world.state_reached(self.peer, stage, step, state)

    # --- steps ---

    def discard(self) -> None:
        """Reset the gradient behind the work that is queued, which is lost with it; nothing new counts meanwhile."""
        gradient = self.gradient
        self.discarding += 1

        def ended(computed: bool) -> None:
            gradient.clear()
            self.discarding -= 1
            self._gradient_changed()

        self.compute.submit(0.0, lambda: True, ended)

    def _reset_gradient(self) -> None:
        self.gradient: Gradient = Counter()
        self._gradient_changed()

    def _note(self, what: Counted | SaidVoid) -> None:
        self.world.watch.see(self.peer, what)

    def _gradient_changed(self) -> None:
        self.gradient_changes += 1
        self.world.exchanges.gradient_changes += 1

    def apply(self, record: Record) -> None:
        """Apply the reduced gradient the record names, or keep it until the state is here."""
        assert self.stage is not None
        content = self.finished[record.stages[self.stage].gradient_hash]
        self._reset_gradient()
        if self.loaded:
            self._advance(record, content)
            return
        if self._fetch is not None:
            self._feed(self._fetch, StepCommitted(self.peer.now_s, (record, content), 1))

    def record_learned(self, record: Record) -> None:
        """A reduction in progress is of no use any more; and the state that we fetch may be committed to by now."""
        if self._reduction is not None:
            self._reduction = None
            self.world.exchanges.changed()
        if self._fetch is not None:
            now_s, asked = self.peer.now_s, self._fetch.asked
            if record.commits_step and record.step == asked.record.step + 1:
                self._feed(self._fetch, RootNamed(now_s, record.stages[asked.stage].state_hash))
            self._feed(self._fetch, DonorsLeft(now_s, asked.donors_in(record.view)))

    def _advance(self, record: Record, content: Gradient) -> None:
        assert self.stage is not None
        reduced = record.stages[self.stage].gradient_hash
        self.state = hashlib.sha256(self.state + reduced).digest()
        self.step = record.step
        self.world.state_reached(self.peer, self.stage, record.step, self.state)

    # --- state transfer ---

    @property
    def steps_kept(self) -> int:
        """Committed steps that wait for the state."""
        return len(self._fetch.core.kept) if self._fetch is not None else 0

    def admitted(self, asked: Admitted) -> None:
        self._reset_gradient()
        self._fetch = None
        if asked.synced and asked.record.step > self.world.first_step:
            self.host(asked.stage, state=self.state, step=asked.record.step)
            return
        if asked.synced:
            if self.loaded and self.stage != asked.stage:
                self.world.gave_up(self.peer)
            self.host(asked.stage)
            return
        if self.loaded and self.stage != asked.stage:
            self.world.gave_up(self.peer)
        self.stage, self.loaded = asked.stage, False
        self.snapshots.clear()
        self._fetch = _Fetch(asked, self._fetch_of(asked))
        self._do(self._fetch, self._fetch.core.start(self.peer.now_s))

    def offer(self, step: int) -> None:
        """Keep a snapshot of this step, and commit to its hash with the next step."""
        self._offered = step
        self.snapshots[step] = self.state
        while len(self.snapshots) > _SNAPSHOTS_KEPT:
            del self.snapshots[min(self.snapshots)]

    def _fetch_of(self, asked: Admitted) -> StateFetch[tuple[Record, Gradient]]:
        last = asked.record.step >= self.world.settings.steps
        return StateFetch(asked.donors, last=last, kept_bytes_max=REPLAY_MAX)

    def _feed(self, fetch: _Fetch, event: Event[tuple[Record, Gradient]]) -> None:
        if self._fetch is fetch:
            self._do(fetch, fetch.core.handle(event))

    def _do(self, fetch: _Fetch, effects: list[Effect]) -> None:
        """Do what the core of a state transfer says, a little later, as the real shell's queue does."""
        for effect in effects:
            match effect:
                case FetchFrom(donors):
                    self.peer.later(0.0, self._fetch_from, fetch, donors)
                case LoadFetched():
                    self.peer.later(0.0, self._load, fetch)
                case GiveUp():
                    self.peer.later(0.0, self._give_up_fetch, fetch)
        wait_s = fetch.core.wake_at_s - self.peer.now_s
        if wait_s < math.inf:
            self.peer.later(wait_s, self._tick, fetch)

    def _tick(self, fetch: _Fetch) -> None:
        self._feed(fetch, Tick(self.peer.now_s))

    def _fetch_from(self, fetch: _Fetch, donors: tuple[PeerID, ...]) -> None:
        """Fetch from a donor that still has that step."""
        for donor in donors:
            if self._snapshot_of(donor, fetch) is not None:
                seconds = self.world.scaled(self.world.fetch_s) * (0.5 + self.peer.rng.random())
                self.peer.later(seconds, self._fetched, fetch, donor)
                return
        self._feed(fetch, FetchBroken(self.peer.now_s, "no donor has it"))

    def _snapshot_of(self, donor_id: PeerID, fetch: _Fetch) -> bytes | None:
        donor = self.world.peers[donor_id]
        network = self.world.network
        here, there = self.peer.peer_id, donor_id
        if donor.stopped or not (network.reaches(here, there) and network.reaches(there, here)):
            return None
        stage, step = donor.stage, fetch.asked.record.step
        if stage.stage != fetch.asked.stage:
            return None
        if stage.loaded and stage.step == step:
            return stage.state
        return stage.snapshots.get(step)

    def _fetched(self, fetch: _Fetch, donor: PeerID) -> None:
        state = self._snapshot_of(donor, fetch)
        if state is None:
            self._feed(fetch, FetchBroken(self.peer.now_s, "the donor is gone"))
            return
        fetch.fetched = state
        self._feed(fetch, Fetched(self.peer.now_s, donor, state_root(state)))

    def _load(self, fetch: _Fetch) -> None:
        if self._fetch is not fetch or fetch.core.given_up:
            return
        self.host(fetch.asked.stage, state=fetch.fetched, step=fetch.asked.record.step)
        for record, content in fetch.core.kept:
            self._advance(record, content)
        self._fetch = None
        self.peer.handle(StateLoaded(self.peer.now_s))

    def _give_up_fetch(self, fetch: _Fetch) -> None:
        if self._fetch is fetch:
            self.peer.handle(FetchFailed(self.peer.now_s))

    # --- reducing ---

    def start_reduce(self, asked: StartReduce) -> None:
        if self._done is not None and self._done.index != asked.index:
            self.finished.clear()
        self._reduction = _Reduction(asked, self.world.clock.now_s)
        self.world.exchanges.changed()
        self.peer.later(0.0, self._try_reduce, self._reduction)

    def reduces(self, index: int) -> bool:
        """Tell whether this gradient is being summed, or was, for a record that is not decided yet."""
        running = self._reduction.asked.index if self._reduction is not None else None
        done = self._done.index if self._done is not None else None
        return index in (running, done)

    def _try_reduce(self, reduction: _Reduction) -> None:
        """Finish once every contributor reduces the same thing and reaches us; give up on one that does not."""
        if self._reduction is not reduction:
            return
        asked, waited_s = reduction.asked, self.world.clock.now_s - reduction.since_s
        missing = self.world.exchanges.missing(self.peer.peer_id, asked)
        if missing is None:
            seconds = self.world.scaled(self.world.reduce_s) * (0.5 + self.peer.rng.random())
            self.peer.later(seconds, self._finish_reduction, reduction)
        elif missing in self.world.network.down or waited_s > 2 * self.world.settings.silence_s:
            self._reduction = None
            self.world.exchanges.changed()
            self._tell(lambda now_s: ReduceFailed(now_s, asked.index, asked.ballot, missing))
        else:
            again_s = max(self.world.network.delay_s(), waited_s / 4)
            self.peer.later(again_s, self._try_reduce, reduction)

    def _finish_reduction(self, reduction: _Reduction) -> None:
        """The last byte has come. What was summed is what the gradients hold by now: they may not have changed."""
        if self._reduction is not reduction:
            return
        asked = reduction.asked
        if self.world.exchanges.missing(self.peer.peer_id, asked) is not None:
            self._try_reduce(reduction)
            return
        content, digest = self.world.exchanges.sum(asked)
        self._note_false_part(asked)
        if self.world.damages(self.peer) and len(asked.group) > 1:
            content = content + Counter([self.world.rng.randrange(1000, 10**9)])
            digest = digest_of(content)
        self._done, self._reduction = asked, None
        self.finished[digest] = content
        offered = self._offered == asked.step - 1 and self.loaded
        root = state_root(self.state) if offered else b""
        self._tell(
            lambda now_s: ReduceFinished(now_s, asked.index, asked.ballot, digest, 1.0, 1.0, root)
        )

    def _tell(self, make: Callable[[float], ReduceFinished | ReduceFailed]) -> None:
        self.peer.report(lambda: self.peer.handle(make(self.peer.now_s)))

    def _note_false_part(self, asked: StartReduce) -> None:
        """Members that lie may have put anything into the sum: remember what, for the checkers."""
        lying = [peer for peer in asked.contributors if peer in self.world.liars]
        if lying and self.stage is not None:
            gradients = (self.world.peers[peer].stage.gradient for peer in lying)
            self.world.false_parts[asked.index, self.stage] = sum(gradients, Counter[int]())

    def offers(self, index: int, ballot: Ballot) -> bool:
        """Tell whether our gradient can be had for this reduction."""
        present = self._reduction.asked if self._reduction is not None else self._done
        return present is not None and (present.index, present.ballot) == (index, ballot)

    # --- calls ---

    def serve(self, ask: AskStage, call: Caller) -> None:
        """Take a request into the tally, then into the queue, as the real stage host does."""
        if ask.count and ask.step == self.peer.ledger.tally.step:
            problem = self._why_not_entitled(call.trainer_id, ask.grant, _bit(ask.microbatch))
            if problem is not None:
                call.answer(_failed(ask.call, problem.code, problem.retry_after_s))
                return
        refusal = self._why_not(ask)
        if refusal is not None:
            tally = self.peer.ledger.tally
            if ask.count and ask.step == tally.step:
                tally.settle(ask.microbatch, ask.attempt)
            call.answer(_failed(ask.call, refusal, None))
        elif ask.kind in ("forward", "evaluate"):
            self._serve_forward(ask, call)
        else:
            self._serve_backward(ask, call)

    def _why_not_entitled(self, asker: PeerID, grant: Grant, ids: int) -> Refusal | None:
        ledger = self.peer.ledger
        if ledger.record is None or grant.signature != signature_for(grant.lead, asker):
            return Refusal("bad-request", "only who holds a lease may have work counted")
        return ledger.why_not_entitled(grant, ids)

    def _why_not(self, ask: AskStage) -> ErrorCode | None:
        ledger = self.peer.ledger
        if ledger.member is None or not self.loaded or ask.stage != self.stage:
            return "not-here"
        if ledger.leaving and not ledger.asked_to_stay:
            return "draining"
        return None

    def _seconds(self, size: float) -> float:
        return size * self.peer.slowness * self.world.compute_s

    def _serve_forward(self, ask: AskStage, call: Caller) -> None:
        if ask.step != self.step + 1:
            code: ErrorCode = "step-passed" if ask.step <= self.step else "step-ahead"
            call.answer(_failed(ask.call, code, None))
        elif self.compute.full:
            call.answer(_failed(ask.call, "busy", 0.1))
        else:

            def ended(computed: bool) -> None:
                if computed:
                    self._answer(ask, call, counted=False)

            self.compute.submit(self._seconds(1.0), call.wanted, ended)

    def _serve_backward(self, ask: AskStage, call: Caller) -> None:
        tally, gradient = self.peer.ledger.tally, self.gradient
        if ask.count and self.discarding:
            if ask.step == tally.step:
                tally.settle(ask.microbatch, ask.attempt)
            call.answer(_failed(ask.call, "busy", 0.05))
            return
        work = tally.begin(ask.step, ask.microbatch, ask.attempt, count=ask.count)
        if isinstance(work, Refusal):
            call.answer(_failed(ask.call, work.code, work.retry_after_s))
        elif self.compute.full:
            if work is Work.COUNT:
                tally.finish(ask.microbatch, added=False)
            call.answer(_failed(ask.call, "busy", 0.1))
        else:

            def ended(computed: bool) -> None:
                if work is Work.COUNT and computed:
                    # As the compute thread does, whatever was decided meanwhile.
                    gradient[ask.microbatch] += 1
                    self._gradient_changed()
                self._count(ask, call, tally, counting=work is Work.COUNT, computed=computed)

            self.compute.submit(self._seconds(_BACKWARD), call.wanted, ended)

    def _count(
        self, ask: AskStage, call: Caller, tally: Tally, *, counting: bool, computed: bool
    ) -> None:
        current = tally is self.peer.ledger.tally
        if counting and tally.finish(ask.microbatch, added=computed) and current:
            self._note(Counted(ask))
            broken = self.world.rng.random() < self.world.broken_gradients
            self.peer.handle(TallyChanged(self.peer.now_s, broken))
        if computed:
            counted = current and bool(tally.counted >> ask.microbatch & 1)
            self._answer(ask, call, counted=counted)

    def _answer(self, ask: AskStage, call: Caller, *, counted: bool) -> None:
        record = self.peer.ledger.record
        index = record.index if record is not None else 0
        call.answer(lambda now_s: CallAnswered(now_s, ask.call, index, counted, 1.0))

    def settle(
        self, asker: PeerID, ask: AskSettle | AskClaim, answer: Callable[[MakeEvent], None]
    ) -> None:
        ledger = self.peer.ledger
        if ledger.member is None or ledger.record is None or ask.step != ledger.tally.step:
            answer(_failed(ask.call, "step-ahead", None))
            return
        ids = ask.ids if isinstance(ask, AskClaim) else _bit(ask.microbatch)
        problem = self._why_not_entitled(asker, ask.grant, ids)
        if problem is not None:
            answer(_failed(ask.call, problem.code, problem.retry_after_s))
            return
        index = ledger.record.index
        if isinstance(ask, AskSettle):
            settled = ledger.tally.settle(ask.microbatch, ask.attempt)
            if settled is Settled.VOID:
                self._note(SaidVoid(ask.step, ask.microbatch, ask.attempt))
            answer(lambda now_s: SettleAnswered(now_s, ask.call, settled, index))
        else:
            counted, pending = ledger.tally.claim(ask.ids, ask.grant.generation)
            for microbatch in ids_of(ask.ids & ~counted & ~pending):
                before = Attempt(ask.grant.generation, -1)
                self._note(SaidVoid(ask.step, microbatch, before))
            answer(lambda now_s: ClaimAnswered(now_s, ask.call, counted, pending, index))


def _bit(microbatch: int) -> int:
    return 1 << (microbatch if 0 <= microbatch < MICROBATCHES_MAX else MICROBATCHES_MAX)


def _failed(call: int, code: ErrorCode | None, retry_after_s: float | None) -> MakeEvent:
    return lambda now_s: CallFailed(now_s, call, code, retry_after_s)
