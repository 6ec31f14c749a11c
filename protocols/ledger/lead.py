"""What the lead of one record does: deal work, watch coverage, have the step reduced, propose, count the accepts.

Rules of this file:
  - A lead proposes at most one record per (index, ballot); all that comes before the proposal can be given up freely.
  - It proposes a step record only when every member reported Reduced with equal hashes per stage, and a view record
    when members must go (silent, leaving) or change (admitted, fenced, moved).
  - It knows nothing for ever: tallies, leases and evaluations are rebuilt from what peers repeat.

    DEALING --all covered--> REDUCING --all reduced--> PROPOSING --quorum accepted--> decided
        '------- members must change ------------------^
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Final, TypeAlias

from protocols.core import Blame, Send
from protocols.ids import PeerID
from protocols.ledger.coverage import Coverage
from protocols.ledger.events import Effect, LedgerSettings
from protocols.ledger.leases import Leases, first_generation
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Evaluated,
    Heartbeat,
    JoinWanted,
    Lease,
    Reduce,
    Reduced,
    ReduceStuck,
    TallyReport,
    WorkWanted,
)
from protocols.ledger.patience import Patience
from protocols.ledger.placement import Staffing, Standing, unknown
from protocols.ledger.pulse import Pulse
from protocols.ledger.view import (
    LOSS_MAX,
    MEMBERS_MAX,
    Ballot,
    Member,
    MemberTally,
    Record,
    StageCommit,
    View,
    pack_ids,
    unpack_ids,
)

_NEWCOMERS_MAX: Final = MEMBERS_MAX
"""Waiting for one record; the others ask again."""
_MEMBER_COST_S: Final = 0.01
"""What a record costs per member, about: among ten thousand it is 1.2 MB to each, which a lead sends at 1 Gb/s. In a large
swarm somebody always comes or goes, so changes of the members are collected until the last one is paid for."""
_TAIL: Final = 0.002
"""Of a step. When less than that is missing, nearly all members idle, and perhaps for some that are gone: they go sooner."""
_MANY_MEMBERS: Final = 128
_REPEAT_S: Final = 3.0
"""Who has not reduced by then is asked again, and then each time after twice as long: one lost message must not hold up
all the others."""
_FENCE_DOUBLINGS_MAX: Final = 2
"""What a member claims in vain is done by nobody until it is fenced: its trainer believes it (seed 51)."""


LeadMessage: TypeAlias = (
    TallyReport | WorkWanted | Evaluated | JoinWanted | Reduced | ReduceStuck | Accepted
)


class Phase(enum.Enum):
    """Where the lead is with the next record."""

    DEALING = "dealing work"
    REDUCING = "reducing gradients"
    PROPOSING = "proposing"


class Lead:
    """The lead's half of a member. Lives as long as this peer leads, across records.

    Args:
      pulse: shared with the member half: who was heard when.
    """

    def __init__(self, me: PeerID, settings: LedgerSettings, pulse: Pulse) -> None:
        self.me = me
        self.settings = settings
        self.ballot = Ballot(0, me)
        self.phase = Phase.DEALING
        self.leases = Leases(0, generation=0, known=True, all_ids=0, grace_s=0.0)
        self.evaluated: dict[int, float] = {}
        self._pulse = pulse
        self._pace = 1
        self._beat_at_s = -math.inf
        self._trainers = Pulse(settings.silence_s)
        self._record = Record(index=0, step=0, lead=me, members=())
        self._view = View(())
        self._digest = b""
        self._reports: dict[PeerID, TallyReport] = {}
        self._coverage = Coverage(settings.stages, self.full)
        self._staffing = Staffing((), stages=settings.stages, step=0)
        self._newcomers: dict[PeerID, JoinWanted] = {}
        self._patience = Patience(settings.silence_s)
        self._fetch_patience = Patience(settings.silence_s)
        self._fences = Patience(settings.silence_s, doublings_max=_FENCE_DOUBLINGS_MAX)
        self._reduced: dict[PeerID, Reduced] = {}
        self._stuck: dict[PeerID, PeerID] = {}
        self._given_up: set[PeerID] = set()
        """Who is gone while the others go on reducing."""
        self._reduce_since_s = 0.0
        self._repeat_at_s = math.inf
        self._proposal: Record | None = None
        self._accepted: set[PeerID] = set()
        self._decided: Record | None = None
        self._deal_from_s = 0.0
        self._changed_at_s = -math.inf
        self._holds_back = self._urgent = False
        """A change of the members may wait for others to come; somebody is gone, so less long."""
        self.heard_too_few = False
        """Too many members are silent for the others to decide anything."""

    # --- the member half asks ---

    @property
    def calm(self) -> bool:
        """Nobody works and nothing is to be decided."""
        return self.phase is Phase.DEALING and not (self.leases.held() or self._newcomers)

    @property
    def wake_at_s(self) -> float:
        """When something is to be repeated before the next heartbeat; never, if inf."""
        if self.phase is Phase.REDUCING:
            return self._repeat_at_s
        return self._changes_due_s() if self._holds_back else math.inf

    @cached_property
    def full(self) -> int:
        """The set of all training microbatches of a step."""
        return (1 << self.settings.microbatches) - 1

    def begin(
        self,
        now_s: float,
        record: Record,
        view: View,
        digest: bytes,
        ballot: Ballot,
        *,
        elected: bool = False,
        inherited: Record | None = None,
    ) -> list[Effect]:
        """Start leading the record after `record`.

        Args:
          elected: we took over from another lead, so what it dealt is unknown.
          inherited: what a promise obliges us to propose.
        """
        fresh_step = record.step + 1 != self.leases.step
        before = self._view
        self._record, self._view, self._digest, self.ballot = record, view, digest, ballot
        self._pulse.watch(now_s, (member.peer for member in view.members))
        for member in view.members:
            if member.since == record.index:  # whatever was thought of its former self
                self._pulse.heard(now_s, member.peer)
                self._patience.let_in(now_s, member.peer)
                report = self._reports.get(member.peer)
                if report is not None and report.broken and not report.synced:
                    self._fetch_patience.let_in(now_s, member.peer)
                if member.peer in before:
                    self._fences.let_in(now_s, member.peer)
        self._newcomers = {p: j for p, j in self._newcomers.items() if not self._admitted(p, j)}
        if fresh_step:
            self._open_step(now_s, record.step + 1, elected=elected)
        self.leases.raise_generation(first_generation(record.index, ballot.round))
        self._deal_from_s = now_s + 2 * self.settings.heartbeat_s if elected else now_s
        collects = not record.commits_step and len(view) >= _MANY_MEMBERS
        self._changed_at_s = now_s if collects else -math.inf
        self._reset_phase()
        if inherited is not None:
            return self._propose(inherited)
        # Who was not elected leads by the record itself, which is on its way to all.
        return self._heartbeats() if elected else []

    def _open_step(self, now_s: float, step: int, *, elected: bool) -> None:
        trainers = self.leases.trainers()
        ids = self.settings.microbatches + self.settings.evaluation_microbatches
        self.leases = Leases(
            step,
            generation=0,
            known=not elected,
            all_ids=(1 << ids) - 1,
            grace_s=2 * self.settings.heartbeat_s,
            lease_s=self.settings.lease_s,
        )
        for trainer in trainers:
            self.leases.renew(now_s, trainer, 0, 0)
        self.evaluated = {}
        self._reports = {}

    def took_over(self, now_s: float) -> list[Effect]:
        """All promises are in: go on without those that are suspected, before a calm pace gives them more time."""
        return self._review(now_s)

    def received(self, now_s: float, peer: PeerID, message: LeadMessage) -> list[Effect]:
        """Take a message for the lead."""
        match message:
            case TallyReport():
                return self._take_report(now_s, peer, message)
            case WorkWanted():
                return self._deal(now_s, peer, message)
            case Evaluated():
                return self._take_evaluation(now_s, peer, message)
            case JoinWanted():
                return self._take_newcomer(now_s, peer, message)
            case Reduced():
                return self._take_reduced(now_s, peer, message)
            case ReduceStuck():
                return self._take_stuck(peer, message)
            case Accepted():
                return self._take_accepted(peer, message)

    def peer_down(self, now_s: float, peer: PeerID) -> list[Effect]:
        """The transport says this peer is gone."""
        self._forget_trainer(peer)
        return self._review(now_s)

    def _forget_trainer(self, trainer: PeerID) -> None:
        self.leases.expire(trainer)
        self._trainers.forget(trainer)

    def tick(self, now_s: float) -> list[Effect]:
        """Beat, repeat what is unanswered, and look for members that must go."""
        self._trainers.look(now_s)
        for trainer in self.leases.trainers():
            if self._trainers.suspects(now_s, trainer):
                self._forget_trainer(trainer)
        effects = self._beat(now_s)
        if self.phase is Phase.REDUCING and now_s >= self._repeat_at_s:
            self._repeat_at_s = now_s + self._pause_s(now_s)
            effects += self._ask_to_reduce()
        if self.phase is Phase.PROPOSING and self._proposal is not None:
            effects += self._ask_accepts(self._proposal)
        return effects + self._review(now_s)

    def take_decided(self) -> Record | None:
        """Return a record that has just been decided, once."""
        decided, self._decided = self._decided, None
        return decided

    def audience(self, decided: Record) -> list[PeerID]:
        """Whom to tell of a decided record: old and new members, and trainers."""
        peers = {member.peer for member in self._view.members}
        peers |= {member.peer for member in decided.members}
        peers |= set(self.leases.trainers())
        return sorted(peers)

    def must_stay(self, peer: PeerID) -> bool:
        """Tell whether a leaving member is the only one that could give its stage's state to another."""
        report = self._reports.get(peer)
        return report is not None and report.leaving and peer in self._staying([peer])

    def _staying(self, leaving: Collection[PeerID]) -> set[PeerID]:
        """Those of the leaving members that must stay yet."""
        found = [m for p in leaving if (m := self._view.find(p)) is not None]
        if not found:
            return set()
        return {m.peer for m in found if not self._staffing.may_leave(self._standing(m))}

    def waiting_for(self) -> str:
        """Say in a few words what the next record waits for."""
        if self.heard_too_few:
            return "a majority of the members to be heard"
        if self.phase is Phase.PROPOSING:
            return f"accepts from {len(self._view) - len(self._accepted)} members"
        if self.phase is Phase.REDUCING:
            return f"{len(self._view) - len(self._reduced)} members to reduce"
        if not self._view.staffed(self.settings.stages, self._replicas_needed()):
            bare = [s for s in range(self.settings.stages) if not self._view.replicas(s)]
            return f"peers for stages {bare}" if bare else "more replicas before the first step"
        lost = self.lost_stages()
        if lost:
            return f"a peer that holds the state of stages {lost} at step {self._record.step}"
        return f"{self._needed().bit_count()} microbatches"

    def lost_stages(self) -> list[int]:
        """List the stages that have members, none of whom has the state; those not heard yet may have it."""
        unheard = {m.stage for m in self._view.members if m.peer not in self._reports}
        return [s for s in self._staffing.stateless() if s not in unheard]

    # --- work ---

    def _replicas_needed(self) -> int:
        """Per stage. The wish to begin with several is over once work has been done."""
        begun = self._record.step > self.settings.first_step or self._coverage.begun
        return 1 if begun else self.settings.replicas_to_start

    def _evaluating(self) -> bool:
        """Whether the parameters of the last committed step are to be evaluated."""
        every = self.settings.evaluate_every
        return every > 0 and self._record.step % every == 0

    def _done_everywhere(self) -> int:
        return self._coverage.done

    def _needed(self) -> int:
        """What still has to be worked on: training microbatches not counted at every stage, then evaluations."""
        needed = self.full & ~self._done_everywhere()
        if self._evaluating():
            for index in range(self.settings.evaluation_microbatches):
                if index not in self.evaluated:
                    needed |= 1 << (self.settings.microbatches + index)
        return needed

    def _deal(self, now_s: float, trainer: PeerID, wanted: WorkWanted) -> list[Effect]:
        self._trainers.heard(now_s, trainer)
        if wanted.step != self.leases.step:
            self.leases.renew(now_s, trainer, 0, 0)  # a trainer behind: it wants to hear of records
            return [Send(trainer, Heartbeat(self._record.index, self._digest, self.ballot))]
        known = self.settings.microbatches + self.settings.evaluation_microbatches
        holding = unpack_ids(wanted.holding) & ((1 << known) - 1)
        lost = self.leases.renew(now_s, trainer, holding, wanted.seen)
        ids, generation, fresh = self._deal_to(now_s, trainer, wanted.slots)
        if not (ids or lost):
            return []
        lease = Lease(
            self._record.index,
            self.leases.step,
            generation,
            pack_ids(ids),
            fresh,
            pack_ids(lost),
            () if fresh else self._coverage.holders(ids & self.full),
        )
        return [Send(trainer, lease)]

    def _deal_to(self, now_s: float, trainer: PeerID, slots: int) -> tuple[int, int, bool]:
        """Deal, if this is a time to deal."""
        if self.phase is not Phase.DEALING or self._record.step >= self.settings.steps:
            slots = 0
        if now_s < self._deal_from_s or not self._view.staffed(
            self.settings.stages, self._replicas_needed()
        ):
            slots = 0
        return self.leases.deal(now_s, trainer, slots, self._needed() if slots else 0)

    def _take_evaluation(self, now_s: float, trainer: PeerID, message: Evaluated) -> list[Effect]:
        """Take the loss of a held-out microbatch, from the trainer it was dealt to only."""
        bit = self.settings.microbatches + message.microbatch
        known = message.microbatch < self.settings.evaluation_microbatches
        if message.step != self.leases.step or not known:
            return []
        if self.leases.held_by(trainer) >> bit & 1:
            self.evaluated.setdefault(message.microbatch, message.loss)
        return self._review(now_s)

    def _take_report(self, now_s: float, peer: PeerID, report: TallyReport) -> list[Effect]:
        member = self._view.find(peer)
        if member is None or not member.since <= report.index <= self._record.index:
            return []
        if report.step != self._record.step + 1:
            knows = report.index == self._record.index
            return [Blame(peer, "counts another step than its record says")] if knows else []
        counted = unpack_ids(report.counted)
        if counted & ~self.full:
            return [Blame(peer, "counted microbatches that the step does not have")]
        before = self._reports.get(peer)
        if peer in self._reduced and (before is None or before.counted != report.counted):
            return []  # its gradient stands still now: what says otherwise is late, or a lie
        if before == report:
            return []  # nothing new, so nothing to decide; time alone is reviewed by the tick
        if counted and not report.synced:
            # Believed, it could commit a step that nobody applied (seed 513).
            return self._dispute(now_s, member, "counted without the state of its stage")
        taken_back = unpack_ids(before.counted) & ~counted if before is not None else 0
        if taken_back and before is not None:
            # Tallies only grow between fences. A smaller one was overtaken on the way; one that has something else instead is false.
            if not counted & ~unpack_ids(before.counted):
                return []
            return self._dispute(now_s, member, "takes back what it said it had counted")
        self._reports[peer] = report
        self._coverage.add(member, counted)
        self._staffing.put(self._standing(member))
        effects: list[Effect] = []
        if report.leaving and peer != self.me and self.must_stay(peer):
            effects.append(Send(peer, self._heartbeat(stay=True)))
        due = self._holds_back and now_s >= self._changes_due_s()
        return effects + (self._review(now_s) if due or self._is_news(before, report) else [])

    def _dispute(self, now_s: float, member: Member, reason: str) -> list[Effect]:
        """Leave out what a member claims, and have it fenced."""
        self._coverage.dispute(member)
        return [Blame(member.peer, reason), *self._review(now_s)]

    def _is_news(self, before: TallyReport | None, report: TallyReport) -> bool:
        """Tell whether a report may ask for a decision. Most say that a member counted more, or that it is there as before."""
        if before is None:
            if report.leaving or report.broken or len(self._reports) == len(self._view):
                return True
        elif _situation(before) != _situation(report):
            return True
        complete = self.phase is Phase.DEALING and self._ready()
        return complete or bool(self._coverage.disputed)

    def _recount(self) -> None:
        """Build from the reports what is kept up to date with each further one.

        What was disputed before comes last, so that it does not become the first claim.
        """
        standings = (self._standing(member) for member in self._view.members)
        self._staffing = Staffing(
            standings,
            stages=self.settings.stages,
            step=self._record.step,
            epoch=self._record.epoch,
            first_step=self.settings.first_step,
        )
        disputed = self._coverage.disputed
        self._coverage = Coverage(self.settings.stages, self.full)
        for later in (False, True) if disputed else (False,):
            for member in self._view.members:
                report = self._reports.get(member.peer)
                if report is not None and (member.peer in disputed) is later:
                    self._coverage.add(member, unpack_ids(report.counted))

    # --- members ---

    def _admitted(self, peer: PeerID, join: JoinWanted) -> bool:
        member = self._view.find(peer)
        return member is not None and member.incarnation == join.incarnation

    def _take_newcomer(self, now_s: float, peer: PeerID, join: JoinWanted) -> list[Effect]:
        if self._admitted(peer, join):
            return [Send(peer, Heartbeat(self._record.index, self._digest, self.ballot))]
        if len(self._newcomers) < _NEWCOMERS_MAX and self._patience.may_come(now_s, peer):
            self._newcomers[peer] = join
        return self._review(now_s)

    def _reset_phase(self) -> None:
        self.phase = Phase.DEALING
        self._reduced, self._stuck, self._accepted = {}, {}, set()
        self._given_up = set()
        self._proposal = None
        self._reports = {
            peer: report
            for peer, report in self._reports.items()
            if (member := self._view.find(peer)) is not None and report.index >= member.since
        }
        self._recount()

    def _standing(self, member: Member) -> Standing:
        """What is known of a member."""
        report = self._reports.get(member.peer)
        if report is None or report.index < member.since:
            return unknown(member)
        counted = unpack_ids(report.counted).bit_count()
        return Standing(member, synced=report.synced, leaving=report.leaving, counted=counted)

    def _review(self, now_s: float) -> list[Effect]:
        """Decide what is next: change the members, reduce, or go on waiting."""
        if self.phase is Phase.PROPOSING:
            return []
        if self._hold_back(now_s, urgent=True):  # for all we know before we have looked
            return []
        gone = self._unresponsive(now_s)
        if self._hold_back(now_s, urgent=bool(gone)):
            return []
        late = self._late_reducers() if self._reduces_for_too_long(now_s) else set()
        if self._can_do_without(gone | late):
            gone, late = gone | late, set()
        elif not self._can_do_without(gone):
            # They cannot all be gone and decide it. If they are not, but cut off, to remove them would end the run.
            self.heard_too_few = True
            self._reduce_since_s = now_s  # whoever comes back gets the time to reduce
            return []
        self.heard_too_few = False
        if self.phase is Phase.REDUCING:
            removed = gone if self._can_staff_without(gone) else set()
            if self._have_reduced_but(removed):
                return self._conclude(now_s, removed)
            if gone and not self._are_missed(now_s, gone):
                self._given_up = gone
                return []
        fenced = self._to_fence(now_s) | (late - gone)
        let_go: set[PeerID] = set()
        moved: dict[PeerID, int] = {}
        joining = False
        if self.phase is Phase.DEALING:
            if self._ready() and not (fenced or self._contribute(gone)):
                # Whoever else comes or goes can do so by the record of the step, or right after it.
                return self._start_reduce(now_s)
            let_go = self._leaving_now(gone)
            moved = self._to_move(gone | let_go)
            joining = bool(self._newcomers)
        if gone or let_go or fenced or moved or joining:
            return self._propose_view(gone, fenced, moved, let_go)
        return []

    def _contribute(self, gone: set[PeerID]) -> bool:
        """Tell whether the step needs some of these, for what they counted or for their stage."""
        counted = any(p in gone and report.counted for p, report in self._reports.items())
        return counted or not self._can_staff_without(gone)

    def _hold_back(self, now_s: float, *, urgent: bool) -> bool:
        self._urgent = urgent
        self._holds_back = now_s < self._changes_due_s()
        return self._holds_back

    def _changes_due_s(self) -> float:
        """From when on the members may be changed again: a change waits for others to share its record. The less a step lacks,
        the less those wait that are gone, which is *urgent*; once it lacks nothing, nobody does."""
        if self.phase is not Phase.DEALING or self._changed_at_s == -math.inf:
            return -math.inf
        missing = self._needed().bit_count() / (_TAIL * self.settings.microbatches)
        share = min(1.0, missing) if self._urgent or not missing else 1.0
        return self._changed_at_s + share * _MEMBER_COST_S * len(self._view)

    def _to_fence(self, now_s: float) -> set[PeerID]:
        """Whom to let start the step again now. One that was fenced lately waits a while, its claims left out, each time for
        longer: it could end every reduction by breaking or claiming anew. But if a reduction does not end without it, now.
        """
        useless = self._coverage.disputed | self._broken()
        stuck = self._reduces_for_too_long(now_s) or not self._coverage.complete
        if not (self.phase is Phase.REDUCING and stuck):
            useless = {peer for peer in useless if self._fences.may_come(now_s, peer)}
        return useless | self._starved(now_s)

    def _broken(self) -> set[PeerID]:
        """Members whose gradient is of no use."""
        return {
            peer
            for peer, report in self._reports.items()
            if report.broken and report.synced and peer in self._view
        }

    def _starved(self, now_s: float) -> set[PeerID]:
        """Newcomers whose fetch failed while somebody can still give the state.

        A fetch may fail as soon as it begins, so one that keeps failing begins again more and more rarely.
        """
        starved = set()
        for peer, report in self._reports.items():
            member = self._view.find(peer)
            if report.broken and not report.synced and member is not None:
                sources = (self._reports.get(m.peer) for m in self._view.replicas(member.stage))
                fetchable = any(source is not None and source.synced for source in sources)
                if fetchable and self._fetch_patience.may_come(now_s, peer):
                    starved.add(peer)
        return starved

    def _to_move(self, gone: set[PeerID]) -> dict[PeerID, int]:
        """Name a member to send at once to a stage whose last members leave, when all are known."""
        leaving = any(report.leaving for report in self._reports.values())
        replicas = self._replicas_needed()
        unstaffed = not self._view.staffed(self.settings.stages, replicas)
        if (
            not (leaving or (unstaffed and self._record.step == self.settings.first_step))
            or gone
            or self._newcomers
        ):
            return {}
        if len(self._reports) < len(self._view):
            return {}
        move = self._staffing.rescue(replicas=replicas)
        return dict([move]) if move is not None else {}

    def _unresponsive(self, now_s: float) -> set[PeerID]:
        """Members to remove now: silent, or back without their memory."""
        gone = {
            member.peer
            for member in self._view.members
            if member.peer != self.me and self._pulse.suspects(now_s, member.peer)
        }
        if self._newcomers:
            gone |= {p for p in self._newcomers if p in self._view}
        return gone

    def _can_do_without(self, peers: Collection[PeerID]) -> bool:
        return not peers or self._view.is_quorum([p for p in self._view if p not in peers])

    def _reduces_for_too_long(self, now_s: float) -> bool:
        late = now_s - self._reduce_since_s > self.settings.reduce_s
        return late and self.phase is Phase.REDUCING

    def _free_to_leave(self, *, gone: Collection[PeerID], step: int) -> list[PeerID]:
        """Members that want to leave and hold no state of `step` that nobody else has; `gone`, who perhaps has it, does not count."""
        leaving = [
            p
            for p, report in self._reports.items()
            if report.leaving and p in self._view and p not in gone
        ]
        if not leaving:
            return []
        nobody_stays = all(p in gone or p in leaving for p in self._view)
        if nobody_stays and self._newcomers:
            return []  # whoever comes in now may take over what we have
        staying = (member for member in self._view.members if member.peer not in gone)
        staffing = self._staffing.of(staying, step=step)
        found = ((p, self._view.find(p)) for p in leaving)
        return [p for p, m in found if m is not None and staffing.may_leave(self._standing(m))]

    def _leaving_now(self, gone: Collection[PeerID]) -> set[PeerID]:
        """Members that go before the step's end: those that counted nothing, or all when nobody stays to finish it."""
        free = set(self._free_to_leave(gone=gone, step=self._record.step))
        if len(free) == len(self._view):
            return free
        return {peer for peer in free if not self._reports[peer].counted}

    def _late_reducers(self) -> set[PeerID]:
        """Whom a reduction that does not end has to do without: whom the others are stuck on, else who has not answered.

        That one member cannot get something of another that has reduced itself may as well be its own fault; of the late
        ones those whose claims were left out have no part in it. Where too few would be left to decide without them, they
        start the step again: what they are asked to reduce may be what they never counted (seed 478).
        """
        late = {
            m.peer for m in self._view.members if m.peer not in self._reduced and m.peer != self.me
        }
        votes = Counter(self._stuck.values())
        believed = {p for p, count in votes.items() if p in late or count > 1}
        believed |= {self._stuck[self.me]} if self.me in self._stuck else set()
        believed.discard(self.me)
        if believed:
            return {max(believed, key=lambda peer: (votes[peer], peer))}
        return late - self._coverage.disputed or late

    def _propose_view(
        self,
        gone: set[PeerID],
        fenced: set[PeerID],
        moved: dict[PeerID, int],
        let_go: set[PeerID],
    ) -> list[Effect]:
        index = self._record.index + 1
        gone = gone | let_go
        members = _changed(self._view.members, index, gone=gone, fenced=fenced, moved=moved)
        staffing = self._staffing.of(members, step=self._record.step)
        for peer in sorted(self._newcomers):
            join = self._newcomers[peer]
            if len(members) < MEMBERS_MAX:
                member = Member(peer, join.incarnation, staffing.stage_for(join), index)
                members.append(member)
                staffing.put(unknown(member))
        members.sort(key=lambda member: member.peer)
        record = Record(
            index=index,
            epoch=self._record.epoch,
            forks=self._record.forks,
            began=self._record.began,
            step=self._record.step,
            lead=self._successor(members),
            members=tuple(members),
            let_go=tuple(sorted(let_go)),
            previous=self._digest,
        )
        return self._propose(record)

    def _successor(self, members: Sequence[Member]) -> PeerID:
        """Who leads next: we go on, unless we leave by this record."""
        if any(member.peer == self.me for member in members) or not members:
            return self.me
        return members[0].peer

    # --- the step ---

    def _ready(self) -> bool:
        return (
            self._record.step < self.settings.steps
            and not self._needed()
            and self._view.staffed(self.settings.stages)
        )

    def _ask_to_reduce(self) -> list[Effect]:
        """Tell whoever has not reduced yet what its stage is to sum up."""
        index, step = self._record.index + 1, self._record.step + 1
        counted = {tally.peer: tally for tally in self._tallies()}
        messages = {}
        for stage in range(self.settings.stages):
            tallies = [counted[m.peer] for m in self._view.replicas(stage) if m.peer in counted]
            messages[stage] = Reduce(index, self.ballot, step, tuple(tallies))
        return [
            Send(m.peer, messages[m.stage])
            for m in self._view.members
            if m.peer not in self._reduced
        ]

    def _tallies(self) -> tuple[MemberTally, ...]:
        disputed = self._coverage.disputed
        reports = ((p, self._reports.get(p)) for p in self._view if p not in disputed)
        return tuple(MemberTally(p, r.counted) for p, r in reports if r is not None and r.counted)

    def _start_reduce(self, now_s: float) -> list[Effect]:
        self.phase = Phase.REDUCING
        self._reduce_since_s = now_s
        self._repeat_at_s = now_s + self._pause_s(now_s)
        return self._ask_to_reduce()

    def _pause_s(self, now_s: float) -> float:
        """How long to wait for those that have not reduced before they are asked again."""
        return min(self.settings.heartbeat_s, max(_REPEAT_S, now_s - self._reduce_since_s))

    def _take_reduced(self, now_s: float, peer: PeerID, message: Reduced) -> list[Effect]:
        if (
            self.phase is not Phase.REDUCING
            or message.ballot != self.ballot
            or peer not in self._view
        ):
            return []
        self._reduced[peer] = message
        self._stuck.pop(peer, None)
        if len(self._reduced) + len(self._given_up) < len(self._view):
            return []
        return self._review(now_s)

    def _can_staff_without(self, gone: Collection[PeerID]) -> bool:
        stages = {m.stage for m in self._view.members if m.peer not in gone}
        return len(stages) == self.settings.stages

    def _have_reduced_but(self, gone: Collection[PeerID]) -> bool:
        """Tell whether all have reduced but those that are gone: what these contributed the others hold by now.

        Where there are replicas, two have to agree on the bytes.
        """
        if len(self._reduced) + len(gone) < len(self._view):
            return False
        if any(peer not in self._reduced for peer in self._view if peer not in gone):
            return False
        return not gone or all(
            len(self._reduced_at(stage)) >= min(2, len(self._view.replicas(stage)))
            for stage in range(self.settings.stages)
        )

    def _are_missed(self, now_s: float, gone: Collection[PeerID]) -> bool:
        """Tell whether a reduction waits for somebody who is gone. Most often the others have what they need of it already."""
        late = now_s - self._reduce_since_s > self.settings.silence_s
        return late or any(peer in gone for peer in self._stuck.values())

    def _conclude(self, now_s: float, gone: set[PeerID]) -> list[Effect]:
        """End a reduction: commit the step, without those that are gone, unless a gradient turned out to be of no use."""
        useless = self._broken() | self._starved(now_s) | self._in_disagreement()
        if not self._coverage.complete:  # somebody claims by now what another one had claimed
            useless |= self._coverage.disputed
        if useless:
            return self._propose_view(gone, useless - gone, {}, set())
        return self._propose(self._step_record(gone))

    def _in_disagreement(self) -> set[PeerID]:
        """Members of stages whose replicas report different bytes, damaged on the way: all of them start the step again."""
        first: dict[int, Reduced] = {}
        split = set()
        for member in self._view.members:
            reduced = self._reduced.get(member.peer)
            if reduced is not None and not _alike(reduced, first.setdefault(member.stage, reduced)):
                split.add(member.stage)
        return {m.peer for m in self._view.members if m.stage in split}

    def _take_stuck(self, peer: PeerID, message: ReduceStuck) -> list[Effect]:
        if (
            self.phase is Phase.REDUCING
            and message.ballot == self.ballot
            and message.peer in self._view
        ):
            self._stuck[peer] = message.peer
        return []

    def _step_record(self, gone: set[PeerID]) -> Record:
        """Build the record that commits the step that all members but those gone have reduced."""
        stages = []
        for stage in range(self.settings.stages):
            held = self._reduced_at(stage)
            state_hash = next((reduced.state_hash for reduced in held if reduced.state_hash), b"")
            stages.append(StageCommit(held[0].gradient_hash, held[0].squared_norm, state_hash))
        index = self._record.index + 1
        losses = self.evaluated.values() if self._evaluating() else ()
        # Nobody else can build the state of this step, as everybody can that of step 0.
        let_go = set(self._free_to_leave(gone=gone, step=self._record.step + 1))
        members = self._members_after_step(index, gone | let_go)
        return Record(
            index=index,
            epoch=self._record.epoch,
            forks=self._record.forks,
            began=self._record.began,
            step=self._record.step + 1,
            lead=self._successor(members),
            members=members,
            let_go=tuple(sorted(let_go)),
            reduced_at=self.ballot,
            tallies=self._tallies(),
            stages=tuple(stages),
            loss=self._mean_loss(),
            held_out_loss=sum(losses) / len(losses) if losses else None,
            previous=self._digest,
        )

    def _reduced_at(self, stage: int) -> list[Reduced]:
        replicas = self._view.replicas(stage)
        return [self._reduced[m.peer] for m in replicas if m.peer in self._reduced]

    def _mean_loss(self) -> float:
        """Per token; held within what a record can say, whatever the last stage's members report."""
        last = self._reduced_at(self.settings.stages - 1)
        mean = sum(reduced.loss_sum for reduced in last) / self.settings.microbatches
        return max(-LOSS_MAX, min(LOSS_MAX, mean))

    def _members_after_step(self, index: int, gone: set[PeerID]) -> tuple[Member, ...]:
        """A step's end is when leaving and moving cost no work: all gradients start from zero anyway."""
        move = self._staffing.reinforce() if not self._newcomers else None
        moved = dict([move]) if move is not None else {}
        return tuple(_changed(self._view.members, index, gone=gone, fenced=set(), moved=moved))

    # --- proposing ---

    def _propose(self, record: Record) -> list[Effect]:
        self.phase = Phase.PROPOSING
        self._proposal, self._accepted = record, set()
        return self._ask_accepts(record)

    def _ask_accepts(self, record: Record) -> list[Effect]:
        accept = Accept(record.index, self.ballot, record)
        return [Send(m.peer, accept) for m in self._view.members if m.peer not in self._accepted]

    def _take_accepted(self, peer: PeerID, message: Accepted) -> list[Effect]:
        if message.ballot != self.ballot:
            return []  # what we proposed when we led this record before
        self._accepted.add(peer)
        enough = 2 * len(self._accepted) >= len(self._view)
        if enough and self._proposal is not None and self._view.is_quorum(self._accepted):
            self._decided, self._proposal = self._proposal, None
        return []

    def _beat(self, now_s: float) -> list[Effect]:
        """Beat at the present pace, which slows down while nobody works; at once when it changes."""
        pace = self.settings.calm_pace if self.calm else 1
        if pace != self._pace:
            self._pace = pace
            self._pulse.set_pace(now_s, pace)
            self._trainers.set_pace(now_s, pace)
        elif now_s < self._beat_at_s:
            return []
        # A little early, so that a tick that comes early does not cost a whole further one.
        self._beat_at_s = now_s + (pace - 0.5) * self.settings.heartbeat_s
        return self._heartbeats()

    def _heartbeat(self, *, stay: bool = False) -> Heartbeat:
        return Heartbeat(self._record.index, self._digest, self.ballot, self._pace, stay)

    def _heartbeats(self) -> list[Effect]:
        peers = {member.peer for member in self._view.members} | set(self.leases.trainers())
        peers.discard(self.me)
        beat, stay = self._heartbeat(), self._heartbeat(stay=True)
        leaving = [p for p, report in self._reports.items() if report.leaving]
        staying = self._staying(leaving)
        return [Send(peer, stay if peer in staying else beat) for peer in sorted(peers)]


def _alike(one: Reduced, other: Reduced) -> bool:
    """Tell whether two replicas hold the same; they may add up the norm of the same bytes in different orders."""
    same_norm = math.isclose(one.squared_norm, other.squared_norm, rel_tol=1e-6)
    return one.gradient_hash == other.gradient_hash and same_norm


def _situation(report: TallyReport) -> tuple[bool, bool, bool]:
    """What a report says apart from the count."""
    return report.synced, report.leaving, report.broken


def _changed(
    members: Sequence[Member],
    index: int,
    *,
    gone: set[PeerID],
    fenced: set[PeerID],
    moved: dict[PeerID, int],
) -> list[Member]:
    """Return the members after record `index`; whoever is fenced or moved is marked with it."""
    changed = []
    for member in members:
        if member.peer in gone:
            continue
        if member.peer in moved or member.peer in fenced:
            stage = moved.get(member.peer, member.stage)
            changed.append(Member(member.peer, member.incarnation, stage, index))
        else:
            changed.append(member)
    return changed
