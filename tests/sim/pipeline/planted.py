"""Mistakes in the pipeline's cores that a hurried change could bring in, one at a time, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final
from unittest import mock

from protocols.core import Blame
from protocols.ledger import (
    candidacy,
    coverage,
    gossip,
    history,
    lead,
    leases,
    member,
    placement,
    reducing,
    tally,
)
from protocols.ledger import trainer as trainer_core
from protocols.ledger import view as views
from protocols.ledger.events import Admitted, DiscardGradient
from tests.sim.engine.subject import Planted
from tests.sim.pipeline import stage as pipeline_stage
from tests.sim.pipeline.checkers.aborted_changes_nothing import AbortedChangesNothing
from tests.sim.pipeline.checkers.all_prepared import AllPrepared
from tests.sim.pipeline.checkers.bounded import Bounded
from tests.sim.pipeline.checkers.exactly_once import ExactlyOnce
from tests.sim.pipeline.checkers.fresh_is_fresh import FreshIsFresh
from tests.sim.pipeline.checkers.frozen_while_reduced import FrozenWhileReduced
from tests.sim.pipeline.checkers.last_copy_stays import LastCopyStays
from tests.sim.pipeline.checkers.nobody_honest_blamed import NobodyHonestBlamed
from tests.sim.pipeline.checkers.one_history import OneHistory
from tests.sim.pipeline.checkers.one_side_commits import OneSideCommits
from tests.sim.pipeline.checkers.place_is_kept import PlaceIsKept
from tests.sim.pipeline.checkers.same_state import SameState
from tests.sim.pipeline.checkers.status_is_true import StatusIsTrue
from tests.sim.pipeline.checkers.void_is_kept import VoidIsKept
from tests.sim.pipeline.checkers.work_is_redone import WorkIsRedone

# --- replacements; each is the original with one thing wrong ---


def _count_again(
    self: tally.Tally, step: int, microbatch: int, attempt: tally.Attempt, *, count: bool
) -> tally.Work | tally.Refusal:
    """Skip the de-duplication."""
    bit = 1 << microbatch if 0 <= microbatch < self.microbatches else 0
    before, self.counted = self.counted, self.counted & ~bit
    answer = _begin(self, step, microbatch, attempt, count=count)
    self.counted = before
    return answer


def _begin_below_floor(
    self: tally.Tally, step: int, microbatch: int, attempt: tally.Attempt, *, count: bool
) -> tally.Work | tally.Refusal:
    self._floors.pop(microbatch, None)
    return _begin(self, step, microbatch, attempt, count=count)


def _begin_frozen(
    self: tally.Tally, step: int, microbatch: int, attempt: tally.Attempt, *, count: bool
) -> tally.Work | tally.Refusal:
    frozen, self.frozen = self.frozen, False
    answer = _begin(self, step, microbatch, attempt, count=count)
    self.frozen = frozen
    return answer


def _fence_keeping_tally(self: tally.Tally) -> None:
    self.frozen = False
    self.fences += 1


def _fence_counting_on(self: tally.Tally) -> None:
    """Work that began before the fence counts after it."""
    self.counted = 0
    self.frozen = False


def _without_discard(
    self: member.Ledger, record: views.Record, entry: views.Member, *, admitted: bool
) -> list[Any]:
    effects = _open_tally(self, record, entry, admitted=admitted)
    return [effect for effect in effects if not isinstance(effect, DiscardGradient)]


def _always_synced(
    self: member.Ledger, record: views.Record, entry: views.Member, *, admitted: bool
) -> list[Any]:
    """A newcomer takes whatever state it has for the stage's."""
    effects = _open_tally(self, record, entry, admitted=admitted)
    self.synced = True
    return [
        dataclasses.replace(effect, synced=True) if isinstance(effect, Admitted) else effect
        for effect in effects
    ]


def _synced_by_stage(
    self: member.Ledger, record: views.Record, entry: views.Member, *, admitted: bool
) -> list[Any]:
    """A newcomer's state is taken for the present one when it is merely of the right stage."""
    holds = self.holds
    effects = _open_tally(self, record, entry, admitted=admitted)
    if admitted and holds is not None and holds.stage == entry.stage:
        self.synced = True
        return [
            dataclasses.replace(effect, synced=True) if isinstance(effect, Admitted) else effect
            for effect in effects
        ]
    return effects


def _still_frozen(
    self: member.Ledger, record: views.Record, entry: views.Member, *, admitted: bool
) -> list[Any]:
    """An aborted reduction leaves the tally frozen."""
    frozen = self.tally.frozen
    effects = _open_tally(self, record, entry, admitted=admitted)
    self.tally.frozen = frozen and not record.commits_step
    return effects


def _half_is_a_quorum(self: views.View, peers: Any) -> bool:
    return sum(peer in peers for peer in self) * 2 >= len(self)


def _one_less_is_a_quorum(self: views.View, peers: Any) -> bool:
    return sum(peer in peers for peer in self) * 2 + 1 > len(self)


def _stand_with_old_promises(
    self: candidacy.Candidacy, now_s: float, promised: views.Ballot
) -> views.Ballot:
    """What was promised to an earlier round counts for the next."""
    before = self._promises
    ballot = _stand(self, now_s, promised)
    self._promises = before
    return ballot


def _open_step_as_dealt_by_us(self: lead.Lead, now_s: float, step: int, *, elected: bool) -> None:
    """An elected lead takes nothing for dealt."""
    _open_step(self, now_s, step, elected=False)


def _nothing_inherited(promises: Any) -> None:
    return None


def _promise_without_accepted(self: member.Ledger, peer: Any, message: Any) -> list[Any]:
    effects: list[Any] = _prepare(self, peer, message)
    for effect in effects:
        if hasattr(effect.message, "accepted"):
            bare = dataclasses.replace(effect.message, accepted=None, accepted_at=None)
            return [dataclasses.replace(effect, message=bare)]
    return effects


def _accept_without_remembering(self: member.Ledger, peer: Any, message: Any) -> list[Any]:
    before = self._accepted_at, self._accepted
    effects = _accept(self, peer, message)
    self._accepted_at, self._accepted = before
    return effects


def _accept_lower_ballots(self: member.Ledger, peer: Any, message: Any) -> list[Any]:
    promised = self._promised
    self._promised = min(promised, message.ballot)
    effects = _accept(self, peer, message)
    self._promised = max(promised, self._promised)
    return effects


def _propose_when_half_reduced(self: lead.Lead, now_s: float, peer: Any, message: Any) -> list[Any]:
    """Do not wait for all members to hold the reduced gradient."""
    effects = _take_reduced(self, now_s, peer, message)
    reducing = self.phase is lead.Phase.REDUCING
    if effects or not reducing or not self._view.is_quorum(self._reduced):
        return effects
    by_stage = {}
    for entry in self._view.members:
        if entry.peer in self._reduced:
            by_stage[entry.stage] = self._reduced[entry.peer]
    if len(by_stage) < self.settings.stages:
        return effects
    for entry in self._view.members:
        self._reduced.setdefault(entry.peer, by_stage[entry.stage])
    return self._propose(self._step_record(set()))


def _review_while_proposing(self: lead.Lead, now_s: float) -> list[Any]:
    """Change the proposal when members fall silent, under the same ballot."""
    phase = self.phase
    if phase is lead.Phase.PROPOSING:
        self.phase = lead.Phase.DEALING
    effects = _review(self, now_s)
    if self.phase is lead.Phase.DEALING:
        self.phase = phase
    return effects


def _done_anywhere(self: lead.Lead) -> int:
    """A microbatch counted at one stage is taken for done at all."""
    done = 0
    for ids in self._coverage._by_stage:
        done |= ids
    return done


def _no_problem(*args: Any, **named: Any) -> None:
    return None


def _start_whatever_is_counted(
    self: reducing.Reducing, message: Any, me: Any, stage: int, view: Any, counts: tally.Tally
) -> Any:
    """Reduce although the lead knows less than we have counted, or we still count."""
    assigned = {entry.peer: views.unpack_ids(entry.counted) for entry in message.tallies}
    counted, counts.counted = counts.counted, assigned.get(me, 0)
    counting, counts._counting = counts._counting, {}
    effect = _start(self, message, me, stage, view, counts)
    counts.counted, counts._counting = counted, counting
    return effect


def _start_without_last(self: reducing.Reducing, *args: Any) -> Any:
    """Leave one contributor out."""
    effect = _start(self, *args)
    if effect is None or len(effect.contributors) < 2:
        return effect
    return dataclasses.replace(effect, contributors=effect.contributors[:-1])


def _not_marked(members: Any, index: int, **changes: Any) -> list[Any]:
    """Fenced members are not marked with the record that fences them."""
    return _changed(members, index, **(changes | {"fenced": set()}))


def _heartbeat_digest_first(self: member.Ledger, now_s: float, peer: Any, message: Any) -> Any:
    """Compare digests of different records."""
    if self.member is not None and message.digest != self._digest:
        return [Blame(peer, "its history differs from ours")]
    return _heartbeat(self, now_s, peer, message)


def _records_from_anybody(self: member.Ledger, now_s: float, peer: Any, message: Any) -> Any:
    with mock.patch.object(views.View, "__contains__", _always):
        return _records(self, now_s, peer, message)


def _settle_anything(self: tally.Tally, microbatch: int, attempt: tally.Attempt) -> Any:
    """Keep a floor for whatever is asked about."""
    self._floors[microbatch] = max(attempt, self._floors.get(microbatch, attempt))
    return _settle(self, microbatch, attempt)


def _settle_without_floor(self: tally.Tally, microbatch: int, attempt: tally.Attempt) -> Any:
    """Say void without remembering it."""
    floor = self._floors.get(microbatch)
    answer = _settle(self, microbatch, attempt)
    self._floors.pop(microbatch, None)
    if floor is not None:
        self._floors[microbatch] = floor
    return answer


def _forget_unsettled(self: trainer_core.Trainer, event: Any, *args: Any) -> Any:
    """A lost answer is taken for a refusal."""
    return _leg_failed(self, dataclasses.replace(event, code=event.code or "failed"), *args)


def _no_effects(*args: Any, **named: Any) -> list[Any]:
    return []


def _anyone_may_leave(self: placement.Staffing, leaver: Any) -> bool:
    return True


def _rescue_without_donor(self: placement.Staffing, **named: Any) -> Any:
    """Move the only one that has a stage's state to another stage."""
    for stage in range(self.stages):
        for standing in self._staying[stage].values():
            others = [s for s in self._staying[stage].values() if s is not standing]
            if standing.synced and not any(s.synced for s in others) and self.step:
                return standing.member.peer, (stage + 1) % self.stages
    return None


def _always(*args: Any, **named: Any) -> bool:
    return True


def _never(*args: Any, **named: Any) -> bool:
    return False


def _zero(*args: Any, **named: Any) -> int:
    return 0


def _nothing(*args: Any, **named: Any) -> None:
    return None


def _all_incarnations_alike(self: member.Ledger, now_s: float, record: views.Record) -> None:
    """A node that restarted without its memory takes itself for its former self."""
    _adopt(self, now_s, record)
    self.member = self.view.find(self.me)


def _waiting_for_what_is_done(self: lead.Lead) -> str:
    said = _waiting_for(self)
    done = self._done_everywhere().bit_count()
    return f"{done} microbatches" if said.endswith("microbatches") else said


def _can_be_dealt_at_any_time(self: trainer_core.Trainer, lease: Any) -> bool:
    return True


def _take_any_lease(self: trainer_core.Trainer, now_s: float, peer: Any, lease: Any) -> list[Any]:
    """Whoever deals a lease is taken for the lead."""
    assert self.lead is not None
    return _take_lease(self, now_s, self.lead, lease)


def _follow_any_ballot(self: member.Ledger, now_s: float, peer: Any, message: Any) -> list[Any]:
    """Promise a ballot that another member than its owner names."""
    known = self.member is not None and peer in self.view and message.ballot.peer in self.view
    if known and message.digest == self._digest and message.ballot > self._promised:
        self._follow(message.ballot)
    return _heartbeat(self, now_s, peer, message)


def _heartbeat_beside_claims(self: member.Ledger, now_s: float, peer: Any, message: Any) -> Any:
    """That the lead knows of no later records changes nothing for who was told of some."""
    claimants = set(self._claimants)
    effects = _heartbeat(self, now_s, peer, message)
    self._claimants |= claimants
    return effects


def _left_behind_by_any_claim(self: member.Ledger, now_s: float) -> bool:
    waited_s = now_s - self._behind_since_s
    return bool(self._claimants) and waited_s > 4 * self.settings.silence_s


def _step_blamed_late(self: lead.Lead, now_s: float, peer: Any, report: Any) -> list[Any]:
    """A report of another step is taken for a lie, also one that was late."""
    if peer in self._view and report.step != self._record.step + 1:
        return [Blame(peer, "counts another step")]
    return _take_report(self, now_s, peer, report)


def _smaller_blamed_late(self: lead.Lead, now_s: float, peer: Any, report: Any) -> list[Any]:
    """A report that was overtaken on its way is taken for a lie."""
    before = self._reports.get(peer)
    same_step = before is not None and report.step == before.step == self._record.step + 1
    if before is not None and same_step and len(report.counted) < len(before.counted):
        return [Blame(peer, "takes back what it said it had counted")]
    return _take_report(self, now_s, peer, report)


def _mean_loss_as_told(self: lead.Lead) -> float:
    """The last stage's members are believed whatever they say."""
    last = self._view.replicas(self.settings.stages - 1)
    return sum(self._reduced[m.peer].loss_sum for m in last) / self.settings.microbatches


def _add_without_dispute(self: coverage.Coverage, entry: views.Member, counted: int) -> None:
    """What two replicas claim is taken from both."""
    self._counted[entry.stage][entry.peer] = counted
    self._by_stage[entry.stage] |= counted
    self._add_up()


def _due_again(self: gossip.Gossip, now_s: float) -> Any:
    """A rumour is spread without end."""
    untold = self._untold
    rumour = _due(self, now_s)
    self._untold = untold
    return rumour


def _records_from_spreaders(self: member.Ledger, now_s: float, peer: Any, message: Any) -> Any:
    """A member believes whoever spreads a rumour."""
    if peer in self._gossip.spreaders:
        return _records_from_anybody(self, now_s, peer, message)
    return _records(self, now_s, peer, message)


_take_lease, _due = trainer_core.Trainer._take_lease, gossip.Gossip.due
_take_report = lead.Lead._take_report
_stand = candidacy.Candidacy.stand
_open_step = lead.Lead._open_step
_begin, _settle = tally.Tally.begin, tally.Tally.settle
_open_tally, _adopt = member.Ledger._open_tally, member.Ledger._adopt
_prepare, _accept = member.Ledger._prepare, member.Ledger._accept
_heartbeat, _records = member.Ledger._heartbeat, member.Ledger._records
_take_reduced, _review = lead.Lead._take_reduced, lead.Lead._review
_changed, _waiting_for = lead._changed, lead.Lead.waiting_for
_start = reducing.Reducing.start
_leg_failed = trainer_core.Trainer._leg_failed

_WITHOUT_LEASE: Final = (pipeline_stage.SimStage, "_why_not_entitled", _nothing)
"""Whoever asks has its work counted: what a tally refuses strangers hardly shows otherwise."""

SUITE: Final = (
    Planted("a microbatch asked for twice counts twice", ExactlyOnce,
            ((tally.Tally, "begin", _count_again), _WITHOUT_LEASE), first_seed=10),
    Planted("an attempt below the floor is admitted", VoidIsKept,
            ((tally.Tally, "begin", _begin_below_floor),), first_seed=7),
    Planted("void is said and forgotten", VoidIsKept,
            ((tally.Tally, "settle", _settle_without_floor),), first_seed=7),
    Planted("a lost answer is taken for a refusal", VoidIsKept,
            ((trainer_core.Trainer, "_leg_failed", _forget_unsettled),)),
    Planted("counting goes on during the commit", FrozenWhileReduced,
            ((tally.Tally, "begin", _begin_frozen),)),
    Planted("a fence keeps the tally", AbortedChangesNothing,
            ((tally.Tally, "fence", _fence_keeping_tally),)),
    Planted("work begun before a fence counts after it", ExactlyOnce,
            ((tally.Tally, "fence", _fence_counting_on),)),
    Planted("a fence keeps the gradient", ExactlyOnce,
            ((member.Ledger, "_open_tally", _without_discard),)),
    Planted("an aborted reduction leaves the tally frozen", WorkIsRedone,
            ((member.Ledger, "_open_tally", _still_frozen),), first_seed=5),
    Planted("half of the members are a quorum", OneSideCommits,
            ((views.View, "is_quorum", _half_is_a_quorum),)),
    Planted("a quorum is one member short", OneHistory,
            ((views.View, "is_quorum", _one_less_is_a_quorum),)),
    Planted("a new lead ignores what was accepted", OneHistory,
            ((member, "inherited", _nothing_inherited),)),
    Planted("a promise does not say what was accepted", OneHistory,
            ((member.Ledger, "_prepare", _promise_without_accepted),)),
    Planted("an accepted record is not remembered", OneHistory,
            ((member.Ledger, "_accept", _accept_without_remembering),)),
    Planted("a ballot below the promise is accepted", OneSideCommits,
            ((member.Ledger, "_accept", _accept_lower_ballots),)),
    Planted("a restarted node takes itself for its former self", OneHistory,
            ((member.Ledger, "_adopt", _all_incarnations_alike),)),
    Planted("strangers' records are believed", OneHistory,
            ((member.Ledger, "_records", _records_from_anybody),)),
    Planted("a lead changes its proposal", OneSideCommits,
            ((lead.Lead, "_review", _review_while_proposing),)),
    Planted("a step is proposed before all have reduced", AllPrepared,
            ((lead.Lead, "_take_reduced", _propose_when_half_reduced),)),
    Planted("a member reduces while it counts", FrozenWhileReduced,
            ((reducing.Reducing, "start", _start_whatever_is_counted),)),
    Planted("one contributor is left out of a reduction", ExactlyOnce,
            ((reducing.Reducing, "start", _start_without_last),)),
    Planted("what one stage counted is taken for done, unchecked", ExactlyOnce,
            ((lead.Lead, "_done_everywhere", _done_anywhere),
             (member, "coverage_problem", _no_problem))),
    Planted("what one stage counted is taken for done", WorkIsRedone,
            ((lead.Lead, "_done_everywhere", _done_anywhere),)),
    Planted("a fenced member is not marked", WorkIsRedone,
            ((lead, "_changed", _not_marked),)),
    Planted("a newcomer takes its own state for the stage's", SameState,
            ((member.Ledger, "_open_tally", _always_synced),)),
    Planted("an old state of the right stage is taken for the present one", SameState,
            ((member.Ledger, "_open_tally", _synced_by_stage),)),
    Planted("whoever wants to leave may", LastCopyStays,
            ((placement.Staffing, "may_leave", _anyone_may_leave),)),
    Planted("the last copy of a stage is moved elsewhere", LastCopyStays,
            ((placement.Staffing, "reinforce", _rescue_without_donor),)),
    Planted("late heartbeats are taken for lies", NobodyHonestBlamed,
            ((member.Ledger, "_heartbeat", _heartbeat_digest_first),)),
    Planted("leases of dead trainers are never dealt again", WorkIsRedone,
            ((leases.Leases, "expire", _nothing), (leases.Leases, "_overdue", _zero)),
            first_seed=79),
    Planted("nobody stands for a dead lead", WorkIsRedone,
            ((candidacy.Candidacy, "is_due", _never),), first_seed=17),
    Planted("records that were missed are not asked for", WorkIsRedone,
            ((member.Ledger, "_fall_behind", _no_effects),), first_seed=24),
    Planted("a floor is kept for whatever is asked about", Bounded,
            ((tally.Tally, "settle", _settle_anything), _WITHOUT_LEASE)),
    Planted("the history is never cut", Bounded,
            ((history, "HISTORY_RECORDS", 10**6),)),
    Planted("a proposed record may have members that cannot be", NobodyHonestBlamed,
            ((member, "membership_problem", _no_problem),)),
    Planted("whoever asks is taken for the holder of a lease", WorkIsRedone,
            (_WITHOUT_LEASE,)),
    Planted("a lease by anybody entitles", FreshIsFresh,
            ((member.Ledger, "why_not_entitled", _nothing),), first_seed=15),
    Planted("promises to an earlier round are counted", OneHistory,
            ((candidacy.Candidacy, "stand", _stand_with_old_promises),), first_seed=8),
    Planted("an elected lead deals everything as fresh", FreshIsFresh,
            ((lead.Lead, "_open_step", _open_step_as_dealt_by_us),), first_seed=12),
    Planted("status counts the microbatches that are done", StatusIsTrue,
            ((lead.Lead, "waiting_for", _waiting_for_what_is_done),)),
    Planted("claims that contradict each other are both believed", WorkIsRedone,
            ((coverage.Coverage, "dispute", _nothing),), first_seed=5),
    Planted("claims that contradict each other are both committed", ExactlyOnce,
            ((coverage.Coverage, "add", _add_without_dispute), (member, "coverage_problem", _no_problem))),
    Planted("leases are taken from anybody", Bounded,
            ((trainer_core.Trainer, "_take_lease", _take_any_lease),
             (trainer_core.Trainer, "_can_be_dealt", _can_be_dealt_at_any_time))),
    Planted("a ballot is promised to whoever names it", WorkIsRedone,
            ((member.Ledger, "_heartbeat", _follow_any_ballot),)),
    Planted("one member's claim to later records is enough to leave", PlaceIsKept,
            ((member.Ledger, "_heartbeat", _heartbeat_beside_claims),
             (member.Ledger, "_is_left_behind", _left_behind_by_any_claim)), first_seed=13),
    Planted("late reports of the step before are taken for lies", NobodyHonestBlamed,
            ((lead.Lead, "_take_report", _step_blamed_late),)),
    Planted("overtaken reports are taken for lies", NobodyHonestBlamed,
            ((lead.Lead, "_take_report", _smaller_blamed_late),)),
    Planted("a loss is proposed as it was told", NobodyHonestBlamed,
            ((lead.Lead, "_mean_loss", _mean_loss_as_told),)),
    Planted("a rumour is spread without end", Bounded,
            ((gossip.Gossip, "due", _due_again),)),
    Planted("who spreads a rumour is believed", OneHistory,
            ((member.Ledger, "_records", _records_from_spreaders),)),
)  # fmt: skip
