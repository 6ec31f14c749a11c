"""A trainer: takes leases, walks each microbatch through the stages, and knows who counted it where.

Rules of this file:
  - A microbatch is asked to be counted at a second replica only when the first said that it did not and will not
    (an error, or "void"), or when a record removed or fenced the first.
  - When a count turns out void, the other replicas are asked before it is repeated.
  - Whatever fails is tried elsewhere until the step commits; the lead removes members that answer nobody.
  - Tensors stay with the shell, under (microbatch, stage); the core only says which exist.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

from protocols.core import Send
from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.grants import Grant
from protocols.ledger.journey import Backoff, CountedAt, Journey, Kind, Leg, Unsettled
from protocols.ledger.leases import first_generation
from protocols.ledger.messages import Evaluated, Lease, WorkWanted
from protocols.ledger.tally import Attempt, Settled
from protocols.ledger.view import Record, View, ids_of, mask_of, pack_ids, unpack_ids
from protocols.ledger.wiring import Wiring, neighbours
from protocols.replies import ErrorCode

BACKWARD_SIZE: Final = 2.5
"""A backward call costs this many forward ones (the authors' backward_task_size_multiplier)."""
_PAUSE_S: Final = 0.05
"""Before asking the same question again of the same peer."""
_AHEAD_MAX: Final = 64
"""A lease may come before the records that lead to it, this many."""


# --- events ---


@dataclass(frozen=True, slots=True)
class RecordLearned:
    now_s: float
    record: Record
    lead: PeerID


@dataclass(frozen=True, slots=True)
class LeaseReceived:
    now_s: float
    peer: PeerID
    lease: Lease


@dataclass(frozen=True, slots=True)
class CallAnswered:
    """A stage did what it was asked. `index`: the newest record it knew; `counted`: its gradient contains us."""

    now_s: float
    call: int
    index: int
    counted: bool
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A stage refused: nothing was counted. `code` None: lost on the way, so nobody knows."""

    now_s: float
    call: int
    code: ErrorCode | None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class SettleAnswered:
    now_s: float
    call: int
    settled: Settled
    index: int


@dataclass(frozen=True, slots=True)
class ClaimAnswered:
    now_s: float
    call: int
    counted: int
    pending: int
    index: int


@dataclass(frozen=True, slots=True)
class TrainerTick:
    now_s: float


@dataclass(frozen=True, slots=True)
class NodeLeaves:
    """This node is no member any more and will soon be gone: what it holds is for others."""

    now_s: float


TrainerEvent: TypeAlias = (
    RecordLearned
    | LeaseReceived
    | CallAnswered
    | CallFailed
    | SettleAnswered
    | ClaimAnswered
    | TrainerTick
    | NodeLeaves
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class AskStage:
    """Send a request with the tensors of (microbatch, stage); answer CallAnswered or CallFailed."""

    call: int
    peer: PeerID
    kind: Kind
    step: int
    microbatch: int
    stage: int
    count: bool
    attempt: Attempt
    grant: Grant
    deadline_s: float


@dataclass(frozen=True, slots=True)
class AskSettle:
    """Ask what became of an attempt; answer SettleAnswered or CallFailed."""

    call: int
    peer: PeerID
    step: int
    microbatch: int
    attempt: Attempt
    grant: Grant


@dataclass(frozen=True, slots=True)
class AskClaim:
    """Close older leases at a member and ask what it counted; answer ClaimAnswered or CallFailed."""

    call: int
    peer: PeerID
    step: int
    ids: int
    grant: Grant


@dataclass(frozen=True, slots=True)
class CancelCall:
    call: int


@dataclass(frozen=True, slots=True)
class ReleaseTensors:
    """The microbatch needs its tensors no more: committed, or leased to somebody else. None: all of them."""

    microbatch: int | None


TrainerEffect: TypeAlias = Send | AskStage | AskSettle | AskClaim | CancelCall | ReleaseTensors


@dataclass(slots=True)
class _Call:
    peer: PeerID
    journey: Journey | None
    stage: int = 0
    leg: Leg | None = None
    attempt: Attempt | None = None
    started_s: float = 0.0
    size: float = 0.0
    claim: _Claim | None = None
    incarnation: int | None = None
    """Of the peer: another one has not heard the question."""

    @property
    def retry(self) -> Backoff:
        asker = self.claim if self.claim is not None else self.journey
        assert asker is not None
        return asker.retry


@dataclass(slots=True)
class _Claim:
    """A lease that is not fresh: whoever may have counted its microbatches is asked before they start."""

    ids: int
    grant: Grant
    waiting: set[PeerID]
    counted: dict[tuple[int, int], CountedAt]
    before: dict[int, Journey]
    """What we had of them under an older lease."""
    retry: Backoff = field(default_factory=Backoff)
    asking: set[PeerID] = field(default_factory=set)
    """Those of `waiting` with a question on its way."""

    @property
    def generation(self) -> int:
        return self.grant.generation

    @property
    def has_to_ask(self) -> bool:
        return len(self.waiting) > len(self.asking)


class Trainer:
    """One node's trainer.

    Args:
      in_flight: microbatches worked on at once.
      floor_s, ceiling_s: bounds of a request's deadline.
    """

    def __init__(
        self,
        settings: LedgerSettings,
        rng: random.Random,
        *,
        in_flight: int,
        floor_s: float,
        ceiling_s: float,
    ) -> None:
        self.settings = settings
        self.in_flight = in_flight
        self.step = 0
        self.lead: PeerID | None = None
        self.journeys: dict[int, Journey] = {}
        self.paused = False
        self._view = View(())
        self._record: Record | None = None
        self._seen = 0
        self._claims: list[_Claim] = []
        self._calls: dict[int, _Call] = {}
        self._next_call = 0
        self._wirings = [
            Wiring(rng, most=neighbours(settings.stages), floor_s=floor_s, ceiling_s=ceiling_s)
            for _ in range(settings.stages)
        ]
        self._wired_at = [-1] * settings.stages
        self._floor_s = floor_s
        self._want_at_s = -math.inf

    def handle(self, event: TrainerEvent) -> list[TrainerEffect]:
        """Take one event; return what to do, in order."""
        match event:
            case CallAnswered():
                return self._answered(event)
            case RecordLearned():
                return self._learn(event.now_s, event.record, event.lead)
            case LeaseReceived():
                return self._take_lease(event.now_s, event.peer, event.lease)
            case CallFailed():
                return self._failed(event)
            case SettleAnswered():
                return self._settled(event)
            case ClaimAnswered():
                return self._claimed(event)
            case TrainerTick():
                return self._tick(event.now_s)
            case NodeLeaves():
                return self._leave(event.now_s)
            case _:
                assert_never(event)

    @property
    def wake_at_s(self) -> float:
        """When the next TrainerTick is due: to ask again what was put off, or the lead for work; never, if inf."""
        soonest_s = math.inf
        if self.lead is not None and self._record is not None and not self._is_silent():
            soonest_s = self._want_at_s
        for journey in self.journeys.values():
            if journey.asking is None and not journey.finished:
                soonest_s = min(soonest_s, journey.retry.at_s)
        for claim in self._claims:
            if claim.has_to_ask:
                soonest_s = min(soonest_s, claim.retry.at_s)
        return soonest_s

    def rewire(self, lead: PeerID) -> None:
        """Ask another member for work from now on: the lead changed without a record, or is silent."""
        if lead != self.lead:
            self.lead = lead
            self._want_at_s = -math.inf

    def _tick(self, now_s: float) -> list[TrainerEffect]:
        """Ask again what is due, and renew the leases once a heartbeat, however often we are called."""
        effects = self._advance_all(now_s)
        if now_s >= self._want_at_s and not self._is_silent():
            pace = self.settings.calm_pace if self._nothing_to_do() else 1
            self._want_at_s = now_s + pace * self.settings.heartbeat_s
            effects += self._want_work(now_s, repeat=True)
        return effects

    def _is_silent(self) -> bool:
        """We hold nothing and want nothing: there is nothing to tell the lead."""
        return self.paused and not self.journeys and not self._claims

    def _nothing_to_do(self) -> bool:
        """No work can be dealt before another record, which we hear of: do not keep asking."""
        record = self._record
        if record is None or self.journeys or self._claims:
            return False
        return record.step >= self.settings.steps or not self._view.staffed(self.settings.stages)

    def _leave(self, now_s: float) -> list[TrainerEffect]:
        """Give all back at once: a finished microbatch may be needed again, and nobody would be dealt it before the lease is overdue."""
        self.paused = True
        return self._start_step(self.step) + self._want_work(now_s, repeat=True)

    # --- records ---

    def _learn(self, now_s: float, record: Record, lead: PeerID) -> list[TrainerEffect]:
        if self._record is not None and record.index < self._record.index:
            return []  # an outsider, which we are after having been expelled, may first hear of an older one
        new_step = record.step + 1 != self.step
        hopes = new_step or lead != self.lead or self._nothing_to_do()
        self._record, self.lead = record, lead
        self._view = record.view
        effects: list[TrainerEffect] = []
        effects += self._start_step(record.step + 1) if new_step else self._revalidate()
        effects += self._advance_all(now_s)
        return effects + (self._want_work(now_s) if hopes else [])

    def _start_step(self, step: int) -> list[TrainerEffect]:
        effects: list[TrainerEffect] = [CancelCall(number) for number in self._calls]
        for number in list(self._calls):
            self._forget_call(number)
        self._claims.clear()
        self.journeys.clear()
        self.step = step
        return [*effects, ReleaseTensors(None)]

    def _revalidate(self) -> list[TrainerEffect]:
        """Forget what removed or fenced members counted, and stop waiting for members that are gone."""
        for journey in self.journeys.values():
            for stage, place in list(journey.counted.items()):
                member = self._view.find(place.peer)
                if member is None or member.stage != stage:
                    del journey.counted[stage]  # lost with its member: nobody else has it
                elif place.index < member.since:
                    self._doubt(journey, stage)
            for stage, peers in journey.doubtful.items():
                peers.intersection_update(m.peer for m in self._view.replicas(stage))
            for stage, fate in list(journey.unsettled.items()):
                member = self._view.find(fate.peer)
                gone = member is None or member.incarnation != fate.incarnation
                if gone or (member is not None and member.stage != stage):
                    del journey.unsettled[stage]
        for claim in self._claims:
            claim.waiting = {peer for peer in claim.waiting if peer in self._view}
            claim.counted = {
                key: place
                for key, place in claim.counted.items()
                if (member := self._view.find(place.peer)) is not None
                and member.stage == key[1]
                and place.index >= member.since
            }
        for retry in (*(j.retry for j in self.journeys.values()), *(c.retry for c in self._claims)):
            retry.reset()
        effects: list[TrainerEffect] = []
        for number, call in list(self._calls.items()):
            member = self._view.find(call.peer)
            if member is None or member.incarnation != call.incarnation:
                effects.append(CancelCall(number))
                self._forget_call(number)
        return effects

    def _doubt(self, journey: Journey, stage: int) -> None:
        """What we thought was counted is not, though the member is there. The first time it is done again. Should it be so again,
        another trainer may have it as well: find out who else has counted it before it is done once more."""
        journey.counted.pop(stage, None)
        if stage in journey.voided:
            journey.doubtful[stage] = {member.peer for member in self._view.replicas(stage)}
        journey.voided.add(stage)

    def _forget_call(self, number: int) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None and call.journey is not None and call.journey.asking == number:
            call.journey.asking = None
        if call is not None and call.leg is not None:
            self._wirings[call.stage].ended(call.peer)
        if call is not None and call.claim is not None:
            call.claim.asking.discard(call.peer)
        return call

    # --- leases ---

    def _take_lease(self, now_s: float, peer: PeerID, lease: Lease) -> list[TrainerEffect]:
        """Take what the lead deals. A forged lease would have us count under a generation that no real one ever outranks."""
        if lease.step != self.step or peer != self.lead or not self._can_be_dealt(lease):
            return []
        if lease.ids:
            self._seen = max(self._seen, lease.generation)
        lost = self._drop(unpack_ids(lease.lost) & self._not_newer(lease.generation + 1))
        ids = unpack_ids(lease.ids) & self._not_newer(lease.generation)
        effects, before = self._suspend(ids)
        training = ids & ((1 << self.settings.microbatches) - 1)
        grant = lease.grant(peer)
        if lease.fresh or not training:
            self._start(ids, grant, {}, before)
        else:
            self._start(ids & ~training, grant, {}, before)
            self._claims.append(self._claim(lease, grant, training, before))
        return lost + effects + self._advance_all(now_s)

    def _claim(self, lease: Lease, grant: Grant, ids: int, before: dict[int, Journey]) -> _Claim:
        """Have the members asked, at the stages at which the lead knows of nobody who has counted."""
        counted: dict[tuple[int, int], CountedAt] = {}
        for tally in lease.counted:
            member = self._view.find(tally.peer)
            if member is not None and lease.index >= member.since:
                for index in ids_of(unpack_ids(tally.counted) & ids):
                    counted[index, member.stage] = CountedAt(tally.peer, lease.index)
        waiting = {
            member.peer
            for stage in range(self.settings.stages)
            if any((index, stage) not in counted for index in ids_of(ids))
            for member in self._view.replicas(stage)
        }
        return _Claim(ids, grant, waiting, counted, before)

    def _can_be_dealt(self, lease: Lease) -> bool:
        """Tell whether its generation belongs to its record, and that to the present: an outsider may take a liar for the lead."""
        assert self._record is not None
        first, end = first_generation(lease.index, 0), first_generation(lease.index + 1, 0)
        return lease.index <= self._record.index + _AHEAD_MAX and first <= lease.generation < end

    def _drop(self, ids: int) -> list[TrainerEffect]:
        """Another trainer has been given these."""
        effects, before = self._suspend(ids)
        return [*effects, *(ReleaseTensors(index) for index in before)]

    def _not_newer(self, generation: int) -> int:
        """Return the ids that a lease of this generation may begin: a repeated or late lease must not undo a newer one."""
        ids = (1 << (self.settings.microbatches + self.settings.evaluation_microbatches)) - 1
        for journey in self.journeys.values():
            if journey.generation >= generation:
                ids &= ~(1 << journey.microbatch)
        for claim in self._claims:
            if claim.generation >= generation:
                ids &= ~claim.ids
        return ids

    def _suspend(self, ids: int) -> tuple[list[TrainerEffect], dict[int, Journey]]:
        """Stop what we do for these under an older lease; return the journeys, whose tensors can be used again."""
        before: dict[int, Journey] = {}
        for claim in self._claims:
            before |= {i: claim.before[i] for i in ids_of(claim.ids & ids) if i in claim.before}
            claim.ids &= ~ids
        before |= {i: self.journeys.pop(i) for i in ids_of(ids) if i in self.journeys}
        calls = [journey.asking for journey in before.values() if journey.asking is not None]
        for number in calls:
            self._forget_call(number)
        return [CancelCall(number) for number in calls], before

    def _start(
        self,
        ids: int,
        grant: Grant,
        counted: dict[tuple[int, int], CountedAt],
        before: dict[int, Journey],
    ) -> None:
        for index in ids_of(ids):
            held_out = index >= self.settings.microbatches
            journey = Journey(index, self.settings.stages, grant, held_out)
            older = before.get(index)
            if older is not None:
                journey.reached, journey.gradients = older.reached, older.gradients
            journey.counted = {
                stage: place for (other, stage), place in counted.items() if other == index
            }
            self.journeys[index] = journey

    def _want_work(self, now_s: float, *, repeat: bool = False) -> list[TrainerEffect]:
        """Tell the lead what we hold and how much more we can take."""
        if self.lead is None or self._record is None:
            return []
        active = sum(1 for journey in self.journeys.values() if not journey.finished)
        claimed = sum(claim.ids.bit_count() for claim in self._claims)
        slots = 0 if self.paused else max(0, self.in_flight - active - claimed)
        if slots == 0 and not repeat:
            return []
        holding = mask_of(self.journeys)
        for claim in self._claims:
            holding |= claim.ids
        effects: list[TrainerEffect] = []
        if repeat:
            effects += [
                self._evaluated(j) for j in self.journeys.values() if j.evaluated is not None
            ]
        return [
            *effects,
            Send(self.lead, WorkWanted(self.step, slots, pack_ids(holding), self._seen)),
        ]

    def _evaluated(self, journey: Journey) -> Send:
        assert self.lead is not None
        assert journey.evaluated is not None
        index = journey.microbatch - self.settings.microbatches
        return Send(self.lead, Evaluated(self.step, index, journey.evaluated))

    # --- asking ---

    def _advance_all(self, now_s: float) -> list[TrainerEffect]:
        effects: list[TrainerEffect] = []
        for claim in list(self._claims):
            effects += self._advance_claim(now_s, claim)
        for journey in self.journeys.values():
            effects += self._advance(now_s, journey)
        return effects

    def _wiring(self, stage: int) -> Wiring:
        """The replicas of a stage by the newest record. Brought up to date when asked for: most stages are not, in most records."""
        assert self._record is not None
        wiring = self._wirings[stage]
        if self._wired_at[stage] != self._record.index:
            self._wired_at[stage] = self._record.index
            wiring.update(self._view, stage)
        return wiring

    def _number(self, call: _Call) -> int:
        self._next_call += 1
        member = self._view.find(call.peer)
        call.incarnation = member.incarnation if member is not None else None
        self._calls[self._next_call] = call
        return self._next_call

    def _advance_claim(self, now_s: float, claim: _Claim) -> list[TrainerEffect]:
        if not (claim.waiting and claim.ids):
            self._claims.remove(claim)
            self._start(claim.ids, claim.grant, claim.counted, claim.before)
            return []
        if now_s < claim.retry.at_s or not claim.has_to_ask:
            return []
        effects: list[TrainerEffect] = []
        for peer in sorted(claim.waiting - claim.asking):
            claim.asking.add(peer)
            number = self._number(_Call(peer, None, claim=claim))
            effects.append(AskClaim(number, peer, self.step, claim.ids, claim.grant))
        return effects

    def _advance(self, now_s: float, journey: Journey) -> list[TrainerEffect]:
        """Make the next call of a journey, if it has none in flight."""
        if journey.asking is not None or now_s < journey.retry.at_s:
            return []
        for stage, fate in journey.unsettled.items():
            number = self._number(_Call(fate.peer, journey, stage=stage, attempt=fate.attempt))
            journey.asking = number
            what = (journey.microbatch, fate.attempt, journey.grant)
            return [AskSettle(number, fate.peer, self.step, *what)]
        for stage, peers in list(journey.doubtful.items()):
            if peers:
                number = self._number(_Call(min(peers), journey, stage=stage))
                journey.asking = number
                ids = 1 << journey.microbatch
                return [AskClaim(number, min(peers), self.step, ids, journey.grant)]
            del journey.doubtful[stage]
        leg = journey.next_leg()
        if leg is None:
            return []
        wiring = self._wiring(leg.stage)
        size = BACKWARD_SIZE if leg.kind in ("backward", "loss") else 1.0
        peer = wiring.choose(now_s, size)
        if peer is None:
            journey.retry.at_s = max(now_s + self._floor_s / 16, wiring.next_able_s() or now_s)
            return []
        attempt = journey.next_attempt()
        number = self._number(_Call(peer, journey, leg.stage, leg, attempt, now_s, size))
        journey.asking = number
        ask = AskStage(
            number, peer, leg.kind, self.step, journey.microbatch, leg.stage, leg.count, attempt,
            journey.grant, wiring.deadline_s(peer),
        )  # fmt: skip
        return [ask]

    # --- answers ---

    def _answered(self, event: CallAnswered) -> list[TrainerEffect]:
        call = self._forget_call(event.call)
        if call is None or call.journey is None or call.leg is None:
            return []
        journey, leg = call.journey, call.leg
        self._wirings[leg.stage].succeeded(event.now_s, call.peer, call.size, call.started_s)
        effects: list[TrainerEffect] = []
        if leg.kind == "forward":
            journey.reached = max(journey.reached, leg.stage + 1)
        elif leg.kind == "evaluate":
            journey.evaluated = event.loss if event.loss is not None else 0.0
            effects.append(self._evaluated(journey))
        else:
            if leg.stage > 0:
                journey.gradients.add(leg.stage - 1)
            member = self._view.find(call.peer)
            if event.counted and member is not None and event.index >= member.since:
                journey.counted[leg.stage] = CountedAt(call.peer, event.index)
            elif leg.count:
                self._doubt(journey, leg.stage)
        effects += self._advance(event.now_s, journey)
        if journey.finished:
            effects += self._want_work(event.now_s)
        return effects

    def _failed(self, event: CallFailed) -> list[TrainerEffect]:
        lost = self._calls.get(event.call)
        if lost is not None and lost.leg is not None and event.code is None:
            self._wirings[lost.stage].timed_out(lost.peer)
        call = self._forget_call(event.call)
        if call is None:
            return []
        if event.code == "overtaken":
            return self._give_back(call)
        if call.leg is None:
            # A settle or claim that got no answer: ask again until a record removes the member.
            self._wait(event.now_s, call.retry)
            return []
        assert call.journey is not None
        return self._leg_failed(event, call, call.journey, call.leg)

    def _give_back(self, call: _Call) -> list[TrainerEffect]:
        """Our lease is not worth anything at a member any more: a later one is dealt, or the lead that dealt it is unknown
        there. Work is wanted at the next tick: what we have dropped is dealt again, to whoever asks."""
        if call.claim is None:
            assert call.journey is not None
            self.journeys.pop(call.journey.microbatch, None)
            return [ReleaseTensors(call.journey.microbatch)]
        effects = self._drop(call.claim.ids)
        if call.claim in self._claims:
            self._claims.remove(call.claim)
        return effects

    def _leg_failed(
        self, event: CallFailed, call: _Call, journey: Journey, leg: Leg
    ) -> list[TrainerEffect]:
        pause_s = event.retry_after_s if event.retry_after_s is not None else _PAUSE_S
        member = self._view.find(call.peer)
        unknown = event.code in (None, "step-ahead")  # a late copy might still count
        if unknown and leg.count and member is not None and call.attempt is not None:
            journey.unsettled[leg.stage] = Unsettled(call.peer, member.incarnation, call.attempt)
        if event.code in ("step-passed", "step-ahead"):
            # One of us lacks a record that is on its way.
            self._wait(event.now_s, journey.retry)
            return []
        if event.code in (None, "failed", "draining", "not-here", "bad-request"):
            pause_s = max(pause_s, self._floor_s / 4)
        if (
            event.code == "diverged"
        ):  # it will be the same elsewhere: computing it again and again helps nobody
            self._wait(event.now_s, journey.retry)
            pause_s = max(pause_s, self._floor_s)
        self._wirings[leg.stage].bar(event.now_s, call.peer, pause_s)
        return self._advance(event.now_s, journey)

    def _settled(self, event: SettleAnswered) -> list[TrainerEffect]:
        call = self._forget_call(event.call)
        if call is None or call.journey is None:
            return []
        journey = call.journey
        if event.settled is Settled.PENDING:
            self._wait(event.now_s, journey.retry)
            return []
        journey.unsettled.pop(call.stage, None)
        journey.retry.reset()
        member = self._view.find(call.peer)
        counted = event.settled is Settled.COUNTED
        if counted and member is not None and event.index >= member.since:
            journey.counted[call.stage] = CountedAt(call.peer, event.index)
        elif counted:
            self._doubt(journey, call.stage)
        return self._advance(event.now_s, journey)

    def _wait(self, now_s: float, retry: Backoff) -> None:
        retry.wait(now_s, first_s=_PAUSE_S, longest_s=self._floor_s / 4)

    def _claimed(self, event: ClaimAnswered) -> list[TrainerEffect]:
        call = self._forget_call(event.call)
        if call is not None and call.journey is not None:
            return self._doubt_answered(event, call, call.journey)
        if call is None or call.claim is None:
            return []
        claim = call.claim
        member = self._view.find(call.peer)
        if event.pending:
            self._wait(event.now_s, claim.retry)
            return []
        claim.waiting.discard(call.peer)
        claim.retry.reset()
        if member is not None and event.index >= member.since:
            for index in ids_of(event.counted & claim.ids):
                claim.counted[index, member.stage] = CountedAt(call.peer, event.index)
        return self._advance_all(event.now_s)

    def _doubt_answered(
        self, event: ClaimAnswered, call: _Call, journey: Journey
    ) -> list[TrainerEffect]:
        """A replica says whether its gradient has us after all."""
        if event.pending:
            self._wait(event.now_s, journey.retry)
            return []
        journey.retry.reset()
        member = self._view.find(call.peer)
        if event.counted and member is not None and event.index >= member.since:
            journey.counted[call.stage] = CountedAt(call.peer, event.index)
            journey.doubtful.pop(call.stage, None)
        else:
            journey.doubtful[call.stage].discard(call.peer)
        effects = self._advance(event.now_s, journey)
        return effects + (self._want_work(event.now_s) if journey.finished else [])
