"""The lead by itself: situations that a whole swarm rarely gets into, members that lie above all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import protocols.ledger.lead as module
from protocols.core import Blame, Send
from protocols.ids import PeerID
from protocols.ledger.events import Effect
from protocols.ledger.lead import Lead, LeadMessage, Phase
from protocols.ledger.messages import (
    Accept,
    JoinWanted,
    Lease,
    Message,
    Reduce,
    Reduced,
    ReduceStuck,
    TallyReport,
    WorkWanted,
)
from protocols.ledger.pulse import Pulse
from protocols.ledger.view import LOSS_MAX, Ballot, MemberTally, Record, pack_ids
from tests.protocols.ledger.swarm import SETTINGS, members, peer_ids

ALL = pack_ids(0b1111)
HASH = bytes(32)


class Driver:
    """A lead of one stage's members; the last of them is the lead itself."""

    def __init__(self, count: int) -> None:
        self.ids = peer_ids(count)
        self.me = self.ids[-1]
        self.now_s = 0.0
        self.pulse = Pulse(SETTINGS.silence_s)
        self.lead = Lead(self.me, SETTINGS, self.pulse)
        self.ballot = Ballot(0, self.me)
        self.effects: list[Effect] = []
        self.record = Record(index=0, step=0, lead=self.me, members=members([0] * count))
        self.lead.begin(0.0, self.record, self.record.view, self.record.digest(), self.ballot)
        self.report(self.me, 0)

    def hear(self, peer: PeerID, message: LeadMessage) -> None:
        self.effects = self.lead.received(self.now_s, peer, message)

    def report(self, peer: PeerID, counted: int, **changes: int | bool) -> None:
        """Let a member report, about the present record unless told otherwise."""
        report = TallyReport(self.record.index, self.record.step + 1, pack_ids(counted))
        self.hear(peer, replace(report, **changes))  # type: ignore[arg-type]

    def reduced(self, peer: PeerID, **changes: float | bytes) -> None:
        self.pulse.heard(self.now_s, peer)
        message = Reduced(self.record.index + 1, self.ballot, HASH, 1.0, 1.0)
        self.hear(peer, replace(message, **changes))  # type: ignore[arg-type]

    def pass_time(self, seconds: float) -> None:
        """Let everybody be heard, and the lead look."""
        self.now_s += seconds
        for peer in self.ids:
            self.pulse.heard(self.now_s, peer)
        self.effects = self.lead.tick(self.now_s)

    def decide(self) -> Record:
        """Let the proposal be decided and lead on."""
        record = self.proposed()
        assert record is not None
        self.record = record
        self.lead.begin(self.now_s, record, record.view, record.digest(), self.ballot)
        return record

    def sent(self) -> list[Message]:
        return [effect.message for effect in self.effects if isinstance(effect, Send)]

    def blamed(self) -> list[PeerID]:
        return [effect.peer for effect in self.effects if isinstance(effect, Blame)]

    def proposed(self) -> Record | None:
        records = [message.record for message in self.sent() if isinstance(message, Accept)]
        return records[0] if records else None

    def fenced(self) -> list[PeerID]:
        record = self.proposed()
        return [m.peer for m in record.members if m.since == record.index] if record else []


def test_a_late_claim_to_what_is_being_reduced_is_left_out_of_the_step() -> None:
    """A member was thought dead, but could not be removed without it; then it came back, having counted more."""
    driver = Driver(2)
    other, me = driver.ids
    driver.report(other, 0)
    driver.report(me, 0b1111)
    assert driver.lead.phase is Phase.REDUCING
    driver.effects = driver.lead.tick(100.0)
    assert driver.lead.waiting_for() == "a majority of the members to be heard"
    driver.now_s = 101.0
    driver.report(other, 0b1111)
    for peer in driver.ids:
        driver.reduced(peer)
    record = driver.proposed()
    assert record is not None
    assert record.tallies == (MemberTally(me, ALL),)


def test_a_step_that_lacks_what_a_late_claim_put_in_doubt_is_not_proposed() -> None:
    """As above, but what the other one had counted before is part of the step."""
    driver = Driver(2)
    other, me = driver.ids
    driver.report(other, 0b0001)
    driver.report(me, 0b1110)
    assert driver.lead.phase is Phase.REDUCING
    driver.effects = driver.lead.tick(100.0)
    driver.now_s = 101.0
    driver.report(other, 0b0011)
    for peer in driver.ids:
        driver.reduced(peer)
    assert driver.fenced() == [other]


def test_who_claims_what_another_one_claimed_first_is_fenced() -> None:
    driver = Driver(3)
    liar, honest, _ = driver.ids
    driver.report(honest, 0b0011)
    driver.report(liar, 0b0111)
    assert driver.fenced() == [liar]


def test_who_claims_it_again_is_left_out_for_a_while_and_the_step_goes_on() -> None:
    driver = Driver(3)
    liar, honest, me = driver.ids
    driver.report(honest, 0b0011)
    driver.report(liar, 0b0111)
    driver.decide()
    driver.report(liar, 0b1111)
    driver.report(honest, 0b1111)
    assert driver.proposed() is None or driver.fenced() == [liar]
    driver = Driver(3)
    driver.report(honest, 0b0011)
    driver.report(liar, 0b0011)
    driver.decide()
    driver.report(honest, 0b0111)
    driver.report(liar, 0b0111)
    assert driver.proposed() is None
    driver.report(honest, 0b1111)
    reduces = [message for message in driver.sent() if isinstance(message, Reduce)]
    assert reduces[0].tallies == (MemberTally(honest, ALL),)
    for peer in (liar, honest, me):
        driver.reduced(peer)
    record = driver.proposed()
    assert record is not None
    assert record.commits_step
    assert record.tallies == (MemberTally(honest, ALL),)


def test_a_member_that_breaks_again_and_again_does_not_end_every_reduction() -> None:
    driver = Driver(2)
    other, me = driver.ids
    driver.report(other, 0, broken=True)
    assert driver.fenced() == [other]
    driver.decide()
    driver.report(other, 0, broken=True)
    driver.report(me, 0b1111)
    assert driver.proposed() is None
    assert driver.lead.phase is Phase.REDUCING


def test_who_takes_back_what_it_counted_is_blamed_and_fenced() -> None:
    driver = Driver(2)
    liar, _ = driver.ids
    driver.report(liar, 0b0011)
    driver.report(liar, 0b0110)
    assert driver.blamed() == driver.fenced() == [liar]


def test_who_counts_without_the_state_of_its_stage_is_blamed_and_fenced() -> None:
    """Believed, it commits a step that nobody can apply (seed 513)."""
    driver = Driver(2)
    liar = driver.ids[0]
    driver.report(liar, 0b1111, synced=False)
    assert driver.blamed() == driver.fenced() == [liar]
    assert not driver.lead._done_everywhere()


def test_who_does_not_reduce_and_cannot_be_removed_starts_again() -> None:
    """It may be asked to reduce what it never counted (seed 478)."""
    driver = Driver(2)
    other, me = driver.ids
    driver.report(other, 0b1111)
    driver.reduced(me)
    driver.pass_time(SETTINGS.reduce_s)
    assert driver.proposed() is None
    driver.pass_time(1.0)
    assert driver.fenced() == [other]


def test_a_report_that_was_overtaken_is_no_lie() -> None:
    driver = Driver(2)
    other, _ = driver.ids
    driver.report(other, 0b0011)
    driver.report(other, 0b0001)
    assert driver.effects == []


def test_who_counts_another_step_than_its_record_says_is_blamed() -> None:
    driver = Driver(2)
    liar, _ = driver.ids
    driver.report(liar, 0b1111, step=7)
    assert driver.blamed() == [liar]
    assert driver.lead.waiting_for() == "4 microbatches"


def test_a_report_about_a_record_to_come_says_nothing_about_this_step() -> None:
    driver = Driver(2)
    other, _ = driver.ids
    driver.report(other, 0b1111, index=1)
    assert driver.effects == []
    assert driver.lead.waiting_for() == "4 microbatches"


def test_microbatches_that_a_step_does_not_have_are_blamed() -> None:
    driver = Driver(2)
    liar, _ = driver.ids
    driver.report(liar, 0b11111)
    assert driver.blamed() == [liar]
    assert driver.lead.waiting_for() == "4 microbatches"


def test_what_a_member_says_after_it_has_reduced_changes_no_record() -> None:
    driver = Driver(3)
    liar, _, me = driver.ids
    driver.report(me, 0b1111)
    driver.reduced(liar)
    driver.report(liar, 0b1111)
    assert driver.effects == []
    for peer in driver.ids[1:]:
        driver.reduced(peer)
    record = driver.proposed()
    assert record is not None
    assert record.tallies == (MemberTally(me, ALL),)


@pytest.mark.parametrize("change", [{"gradient_hash": bytes([1]) * 32}, {"squared_norm": 1e300}])
def test_replicas_that_differ_in_bytes_or_norm_commit_nothing(change: dict[str, float]) -> None:
    driver = Driver(2)
    liar, me = driver.ids
    driver.report(me, 0b1111)
    driver.reduced(me)
    driver.reduced(liar, **change)
    assert driver.fenced() == [liar, me]


def test_a_norm_added_up_in_another_order_is_the_same() -> None:
    driver = Driver(2)
    other, me = driver.ids
    driver.report(me, 0b1111)
    driver.reduced(me, squared_norm=0.1 + 0.2)
    driver.reduced(other, squared_norm=0.3)
    record = driver.proposed()
    assert record is not None
    assert record.commits_step


@pytest.mark.parametrize("loss_sum", [1e11, -1e11])
def test_a_loss_is_held_within_what_a_record_can_say(loss_sum: float) -> None:
    driver = Driver(2)
    liar, me = driver.ids
    driver.report(me, 0b1111)
    driver.reduced(me)
    driver.reduced(liar, loss_sum=loss_sum)
    record = driver.proposed()
    assert record is not None
    assert record.loss == math.copysign(LOSS_MAX, loss_sum)


def test_one_member_cannot_have_another_removed_that_has_reduced() -> None:
    driver = Driver(4)
    liar, victim, *_, me = driver.ids
    driver.report(me, 0b1111)
    for peer in driver.ids:
        if peer != liar:
            driver.reduced(peer)
    driver.hear(liar, ReduceStuck(1, driver.ballot, victim))
    driver.pass_time(SETTINGS.reduce_s + 1)
    record = driver.proposed()
    assert record is not None
    assert [member.peer for member in record.members] == [p for p in driver.ids if p != liar]


def test_whom_two_members_cannot_reach_is_removed_though_it_has_reduced() -> None:
    driver = Driver(4)
    first, victim, second, me = driver.ids
    driver.report(me, 0b1111)
    driver.reduced(me)
    driver.reduced(victim)
    for peer in (first, second):
        driver.hear(peer, ReduceStuck(1, driver.ballot, victim))
    driver.pass_time(SETTINGS.reduce_s + 1)
    record = driver.proposed()
    assert record is not None
    assert victim not in record.view
    assert len(record.members) == 3


def test_who_claims_all_and_does_not_reduce_is_removed_and_whom_it_shut_out_stays() -> None:
    driver = Driver(4)
    liar, honest, *_ = driver.ids
    driver.report(honest, 0b0001)
    driver.report(liar, 0b0001)  # fenced once, so that it is left out from now on
    driver.decide()
    driver.report(driver.me, 0b1110)
    driver.report(honest, 0b0001)
    driver.report(liar, 0b0001)
    assert driver.lead.phase is Phase.REDUCING
    for peer in (honest, driver.me):
        driver.reduced(peer)
    driver.pass_time(SETTINGS.reduce_s + 1)
    record = driver.proposed()
    assert record is not None
    assert honest in record.view


def test_a_fetch_that_fails_at_once_does_not_have_record_follow_record() -> None:
    """A lead that decides alone, and whose one donor is cut off, would be as fast as its fetches fail."""
    me, donor = peer_ids(2)
    incarnation, old = members([0, 0])
    record = Record(index=7, step=3, lead=me, members=(replace(incarnation, since=7), old))
    lead = Lead(me, SETTINGS, Pulse(SETTINGS.silence_s))
    lead.begin(0.0, record, record.view, record.digest(), Ballot(0, me))
    lead.received(0.0, donor, TallyReport(0, 4, b""))
    failed = TallyReport(7, 4, b"", synced=False, broken=True)
    (second,) = {*proposals(lead.received(0.0, me, failed))}
    assert [m.since for m in second.members] == [8, 0]
    lead.begin(0.0, second, second.view, second.digest(), Ballot(0, me))
    failed = replace(failed, index=8)
    assert not proposals(lead.received(0.0, me, failed))
    assert not proposals(lead.tick(0.9 * SETTINGS.silence_s))
    assert proposals(lead.tick(1.1 * SETTINGS.silence_s))


def test_the_last_member_lets_a_newcomer_in_before_it_leaves() -> None:
    """Everybody may leave when nobody stays. But who asks to join may stay, and would find no state (seed 240)."""
    me, other, newcomer = peer_ids(3)
    record = Record(index=7, step=3, lead=me, members=members([0, 0]))
    pulse = Pulse(SETTINGS.silence_s)
    lead = Lead(me, SETTINGS, pulse)
    lead.begin(0.0, record, record.view, record.digest(), Ballot(0, me))
    lead.received(0.0, other, TallyReport(7, 4, b""))
    lead.received(0.0, me, TallyReport(7, 4, pack_ids(1), leaving=True))
    pulse.down(other)
    (alone,) = {*proposals(lead.peer_down(1.0, other))}
    assert [member.peer for member in alone.members] == [me]
    lead.begin(1.0, alone, alone.view, alone.digest(), Ballot(0, me))
    (proposed,) = proposals(lead.received(1.0, newcomer, JoinWanted(incarnation=9, stage=1)))
    assert [member.peer for member in proposed.members] == [me, newcomer]
    assert proposed.let_go == ()


def test_no_more_members_are_admitted_than_a_run_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBERS_MAX", 2)
    me, first, second = peer_ids(3)
    record = Record(index=0, step=0, lead=me, members=members([0]))
    lead = Lead(me, SETTINGS, Pulse(SETTINGS.silence_s))
    lead.begin(0.0, record, record.view, record.digest(), Ballot(0, me))
    (full,) = proposals(lead.received(0.0, first, JoinWanted(incarnation=5)))
    lead.begin(0.0, full, full.view, full.digest(), Ballot(0, me))
    proposed = proposals(lead.received(0.0, second, JoinWanted(incarnation=6)))
    assert {member.peer for each in proposed for member in each.members} <= {me, first}


def test_a_finished_step_is_reduced_before_anybody_joins() -> None:
    driver = Driver(3)
    first, second, _ = driver.ids
    newcomer = peer_ids(4)[-1]
    driver.report(driver.me, 0b0011)
    driver.report(first, 0b1000)
    driver.report(second, 0b0000)
    driver.pulse.down(second)
    driver.report(first, 0b1100)
    assert driver.lead.phase is Phase.REDUCING  # though one is gone: it had counted nothing
    driver.hear(newcomer, JoinWanted(incarnation=9))
    assert driver.lead.phase is Phase.REDUCING
    for peer in (first, driver.me):
        driver.reduced(peer)
    record = driver.proposed()
    assert record is not None
    assert record.commits_step


def test_a_finished_step_waits_for_the_work_of_one_that_is_gone() -> None:
    driver = Driver(3)
    first, second, _ = driver.ids
    driver.report(second, 0b0100)
    driver.report(driver.me, 0b0011)
    driver.pulse.down(second)
    driver.report(first, 0b1000)
    record = driver.proposed()
    assert record is not None
    assert second not in record.view
    assert not record.commits_step


def test_who_has_not_reduced_is_asked_again_before_the_next_heartbeat() -> None:
    settings = replace(SETTINGS, silence_s=240.0, reduce_s=960.0)
    me, fast, slow = peer_ids(3)
    pulse = Pulse(settings.silence_s)
    lead = Lead(me, settings, pulse)
    record = Record(index=0, step=0, lead=me, members=members([0, 0, 0]))
    lead.begin(0.0, record, record.view, record.digest(), Ballot(0, me))
    effects = lead.received(0.0, me, TallyReport(0, 1, ALL))
    assert [e.peer for e in effects if isinstance(e, Send)] == [*sorted((me, fast, slow))]
    lead.received(1.0, me, Reduced(1, lead.ballot, HASH, 1.0, 1.0))
    lead.received(1.0, fast, Reduced(1, lead.ballot, HASH, 1.0, 1.0))
    asked_s = []
    while lead.wake_at_s < 200.0:
        now_s = lead.wake_at_s
        effects = lead.tick(now_s)
        asked = [e.peer for e in effects if isinstance(e, Send) and isinstance(e.message, Reduce)]
        assert asked == [slow]
        asked_s.append(now_s)
    assert asked_s == [3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 156.0]  # in the end with each heartbeat


def test_a_reduction_is_asked_per_stage() -> None:
    me, other = peer_ids(2)
    settings = replace(SETTINGS, stages=2)
    lead = Lead(me, settings, Pulse(settings.silence_s))
    record = Record(index=0, step=0, lead=me, members=members([0, 1]))
    lead.begin(0.0, record, record.view, record.digest(), Ballot(0, me))
    lead.received(0.0, me, TallyReport(0, 1, ALL))
    effects = lead.received(0.0, other, TallyReport(0, 1, ALL))
    told = {e.peer: e.message for e in effects if isinstance(e, Send)}
    for peer in (me, other):
        message = told[peer]
        assert isinstance(message, Reduce)
        assert [tally.peer for tally in message.tallies] == [peer]


class Crowd(Driver):
    """A lead of a swarm so large that a record costs 10 s, of four members that have counted all but `missing`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, missing: int) -> None:
        monkeypatch.setattr(module, "_MANY_MEMBERS", 2)
        monkeypatch.setattr(module, "_MEMBER_COST_S", 2.5)
        monkeypatch.setattr(module, "_TAIL", 0.5)  # of four microbatches
        super().__init__(4)
        counted = 0b1111 >> missing
        self.report(self.me, counted)
        for peer in self.ids[:-1]:
            self.report(peer, 0)

    def lose(self, peer: PeerID) -> list[Record]:
        self.pulse.down(peer)
        return proposals(self.lead.peer_down(self.now_s, peer))


def test_in_a_large_swarm_changes_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Crowd(monkeypatch, missing=3)
    driver.pass_time(9.0)
    assert not driver.lose(driver.ids[0])
    assert driver.lead.wake_at_s == 10.0
    (record,) = {*proposals(driver.lead.tick(10.0))}
    assert [m.peer for m in record.members] == driver.ids[1:]


def test_in_a_large_swarm_the_last_microbatches_wait_less_for_who_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Crowd(monkeypatch, missing=1)
    driver.pass_time(6.0)
    assert driver.proposed() is None
    newcomer = peer_ids(5)[-1]
    assert not proposals(driver.lead.received(6.0, newcomer, JoinWanted(incarnation=9)))
    assert driver.lead.wake_at_s == 10.0
    (record,) = {*driver.lose(driver.ids[0])}
    assert [m.peer for m in record.members] == sorted([*driver.ids[1:], newcomer])


def test_in_a_large_swarm_what_is_due_is_done_with_the_next_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Crowd(monkeypatch, missing=2)
    driver.pass_time(6.0)
    assert not driver.lose(driver.ids[0])
    driver.report(driver.ids[1], 0b1000)  # half as much is missing, so half as long is waited
    record = driver.proposed()
    assert record is not None
    assert [m.peer for m in record.members] == driver.ids[1:]


def proposals(effects: list[Effect]) -> list[Record]:
    """Return the records that these effects ask to be accepted."""
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message.record for message in sent if isinstance(message, Accept)]


def test_an_elected_lead_deals_nothing_as_fresh() -> None:
    """What the lead before it dealt it cannot know: who takes such a lease asks the members first."""
    trainer = PeerID(b"trainer")
    ids = peer_ids(3)
    record = Record(index=4, step=2, lead=ids[2], members=members([0] * 3))
    lead = Lead(ids[0], SETTINGS, Pulse(SETTINGS.silence_s))
    lead.begin(
        0.0, record, record.view, record.digest(), Ballot(1, ids[0]), elected=True, inherited=None
    )
    effects = lead.received(10.0, trainer, WorkWanted(3, 2, b""))
    leases = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Lease)]
    assert len(leases) == 1
    assert leases[0].ids
    assert not leases[0].fresh
