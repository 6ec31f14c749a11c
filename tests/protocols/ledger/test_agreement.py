"""Several ledgers agree on records, as etcd/raft's paper tests do it: one rule, one test."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.ids import PeerID
from protocols.ledger.events import (
    Admitted,
    ApplyStep,
    DiscardGradient,
    Expelled,
    FetchFailed,
    Heard,
    OfferState,
    ReduceFailed,
    ReduceFinished,
    Spread,
    StartReduce,
    StateLoaded,
    TallyChanged,
)
from protocols.ledger.member import Ledger
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Heartbeat,
    HeldState,
    JoinWanted,
    Message,
    Prepare,
    Promise,
    Records,
    RecordsWanted,
    Reduce,
    Reduced,
    Refused,
    Rumour,
    TallyReport,
)
from protocols.ledger.view import Ballot, Member, MemberTally, Record, StageCommit
from tests.protocols.ledger.swarm import SETTINGS, Swarm

ALL = 0b1111


def joined(count: int, *, stages: int = 1) -> Swarm:
    swarm = Swarm(count, dataclasses.replace(SETTINGS, stages=stages))
    swarm.everybody_joins()
    return swarm


def newest(swarm: Swarm, peer: PeerID) -> Record:
    record = swarm.ledgers[peer].record
    assert record is not None
    return record


def lead_of(swarm: Swarm) -> PeerID:
    leads = [
        p for p, ledger in swarm.ledgers.items() if ledger.lead is not None and p not in swarm.cut
    ]
    assert len(leads) == 1
    return leads[0]


# --- joining ---


def test_a_founder_is_the_only_member_and_leads() -> None:
    swarm = Swarm(1)
    ledger = swarm.ledgers[swarm.ids[0]]
    assert ledger.member is not None
    assert ledger.lead is not None
    assert newest(swarm, swarm.ids[0]).index == 0


def test_newcomers_are_admitted_and_all_learn_the_same_record() -> None:
    swarm = joined(4)
    assert len({newest(swarm, peer).digest() for peer in swarm.ids}) == 1
    assert [m.peer for m in newest(swarm, swarm.ids[0]).members] == swarm.ids


def test_a_newcomer_is_told_where_to_fetch_its_stages_state() -> None:
    swarm = joined(2)
    commit_step(swarm)
    swarm.restart(swarm.ids[1])
    swarm.pass_time(2.0)
    admitted = swarm.did(swarm.ids[1], Admitted)[-1]
    assert isinstance(admitted, Admitted)
    assert (admitted.donors, admitted.record.step, admitted.synced) == ((swarm.ids[0],), 1, False)
    assert swarm.did(swarm.ids[0], OfferState) == [OfferState(1, (swarm.ids[1],))]


def test_a_newcomer_that_holds_the_present_state_has_nothing_to_fetch() -> None:
    swarm = joined(2)
    commit_step(swarm)
    swarm.restart(swarm.ids[1], holds=HeldState(0, 1))
    swarm.pass_time(2.0)
    admitted = swarm.did(swarm.ids[1], Admitted)[-1]
    assert isinstance(admitted, Admitted)
    assert admitted.synced
    assert swarm.ledgers[swarm.ids[1]].synced


def test_a_newcomer_whose_fetch_failed_is_admitted_again() -> None:
    swarm = joined(2)
    commit_step(swarm)
    swarm.restart(swarm.ids[1])
    swarm.pass_time(2.0)
    before = len(swarm.did(swarm.ids[1], Admitted))
    swarm.handle(swarm.ids[1], FetchFailed(swarm.now_s))
    assert len(swarm.did(swarm.ids[1], Admitted)) == before + 1


def test_a_restarted_node_is_not_taken_for_its_former_self() -> None:
    swarm = joined(3)
    member = swarm.ledgers[swarm.ids[2]].member
    swarm.restart(swarm.ids[2])
    assert swarm.ledgers[swarm.ids[2]].member is None
    swarm.pass_time(2.0)
    again = swarm.ledgers[swarm.ids[2]].member
    assert member is not None
    assert again is not None
    assert (again.incarnation, again.since > member.since) == (2, True)


def test_a_lead_that_lost_its_memory_is_replaced() -> None:
    """It still talks, so it never falls silent; that it asks to join says that its former self is dead."""
    swarm = joined(3)
    swarm.busy = True
    swarm.pass_time(1.0)
    lead = lead_of(swarm)
    swarm.restart(lead)
    swarm.pass_time(6.0)
    member = swarm.ledgers[lead].member
    assert member is not None
    assert member.incarnation == 2


# --- committing a step ---


def commit_step(swarm: Swarm) -> None:
    """Let the first member count everything."""
    step = newest(swarm, swarm.ids[0]).step
    swarm.count(swarm.ids[0], ALL)
    swarm.pass_time(1.0)
    assert newest(swarm, swarm.ids[0]).step == step + 1


def test_a_step_is_committed_when_everything_is_counted_and_reduced() -> None:
    swarm = joined(3)
    swarm.count(swarm.ids[1], 0b0011)
    swarm.count(swarm.ids[2], 0b1100)
    record = newest(swarm, swarm.ids[0])
    assert record.step == 1
    assert record.tallies == (
        MemberTally(swarm.ids[1], b"\x03"),
        MemberTally(swarm.ids[2], b"\x0c"),
    )
    for peer in swarm.ids:
        assert swarm.did(peer, ApplyStep) == [ApplyStep(record)]


def test_a_step_is_not_proposed_before_all_members_have_reduced() -> None:
    swarm = joined(3)
    swarm.drops = lambda source, target, message: (
        source == swarm.ids[2] and isinstance(message, Reduced)
    )
    swarm.count(swarm.ids[0], ALL)
    swarm.pass_time(2.0)
    assert newest(swarm, swarm.ids[0]).step == 0
    swarm.drops = lambda source, target, message: False
    swarm.pass_time(1.0)
    assert newest(swarm, swarm.ids[0]).step == 1


def test_a_new_lead_goes_on_at_once_without_the_one_that_is_silent() -> None:
    """Also when there is nothing to do, and hearts beat slowly from then on."""
    swarm = joined(3)
    silent, heir = swarm.ids[0], swarm.ids[1]
    swarm.cut = {silent}
    while swarm.ledgers[heir].lead is None:
        swarm.pass_time(SETTINGS.heartbeat_s / 2)
    assert silent not in newest(swarm, heir).view


def test_a_member_does_not_reduce_what_it_did_not_count() -> None:
    swarm = joined(2)
    peer = swarm.ids[1]
    record = newest(swarm, peer)
    reduce = Reduce(record.index + 1, Ballot(0, record.lead), 1, (MemberTally(peer, b"\x0f"),))
    swarm.cast(record.lead, peer, reduce)
    assert swarm.did(peer, StartReduce) == []
    assert not swarm.ledgers[peer].tally.frozen


def test_a_member_accepts_no_step_that_it_has_not_reduced() -> None:
    swarm = joined(3)
    swarm.reduces = False
    swarm.count(swarm.ids[0], ALL)
    record = newest(swarm, swarm.ids[0])
    forged = dataclasses.replace(
        record, index=record.index + 1, step=1, reduced_at=Ballot(0, record.lead),
        previous=record.digest(), tallies=(MemberTally(swarm.ids[0], b"\x0f"),),
        stages=(),
    )  # fmt: skip
    swarm.cast(record.lead, swarm.ids[1], Accept(forged.index, Ballot(0, record.lead), forged))
    refused = swarm.sent(swarm.ids[1], Refused)[-1]
    assert isinstance(refused, Refused)
    assert swarm.sent(swarm.ids[1], Accepted)[-1] != Accepted(forged.index, Ballot(0, record.lead))


@pytest.mark.parametrize("let_go", [False, True])
def test_a_step_committed_without_a_member_s_gradient_is_not_applied_there(let_go: bool) -> None:
    """No honest lead proposes it: it asks all members first."""
    swarm = joined(2)
    lead, peer = swarm.ids
    record = newest(swarm, peer)
    step = dataclasses.replace(
        record, index=record.index + 1, step=1, reduced_at=Ballot(0, lead), previous=record.digest(),
        tallies=(MemberTally(lead, b"\x0f"),), stages=(StageCommit(bytes(32), 1.0),),
        members=record.members[:1] if let_go else record.members, let_go=(peer,) * let_go,
    )  # fmt: skip
    swarm.cast(lead, peer, Records((step,), step.index))
    (expelled,) = swarm.did(peer, Expelled)
    assert expelled == Expelled(
        "left" if let_go else "did not reduce a step that was committed", let_go
    )
    assert swarm.did(peer, ApplyStep) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"previous": bytes(32)}, "follow"),
        ({"index": 99}, "follow"),
        ({"step": 5}, "step"),
        ({"lead": PeerID(b"stranger")}, "lead"),
    ],
)
def test_a_record_that_does_not_follow_is_refused(change: dict[str, object], reason: str) -> None:
    swarm = joined(3)
    record = newest(swarm, swarm.ids[0])
    good = dataclasses.replace(record, index=record.index + 1, previous=record.digest())
    wrong = dataclasses.replace(good, **change)  # type: ignore[arg-type]
    swarm.cast(record.lead, swarm.ids[1], Accept(good.index, Ballot(0, record.lead), wrong))
    refused = swarm.sent(swarm.ids[1], Refused)[-1]
    assert isinstance(refused, Refused)
    assert reason in refused.reason


def test_replicas_that_reduced_different_bytes_start_the_step_again() -> None:
    swarm = joined(2)
    swarm.reduces = False
    swarm.count(swarm.ids[0], ALL)
    for number, peer in enumerate(swarm.ids):
        start = swarm.did(peer, StartReduce)[-1]
        assert isinstance(start, StartReduce)
        digest = bytes([number]) * 32
        swarm.handle(peer, ReduceFinished(swarm.now_s, start.index, start.ballot, digest, 1.0, 0.0))
    assert newest(swarm, swarm.ids[0]).step == 0
    for peer in swarm.ids:
        assert DiscardGradient() in swarm.did(peer, DiscardGradient)
        assert swarm.ledgers[peer].tally.counted == 0


def test_a_member_whose_gradient_broke_is_fenced() -> None:
    swarm = joined(2)
    swarm.count(swarm.ids[1], 0b0011)
    swarm.handle(swarm.ids[1], TallyChanged(swarm.now_s, broken=True))
    assert swarm.did(swarm.ids[1], DiscardGradient) == [DiscardGradient()]
    assert swarm.ledgers[swarm.ids[1]].tally.counted == 0
    assert not swarm.ledgers[swarm.ids[1]].broken


def test_of_two_members_that_counted_the_same_one_is_fenced() -> None:
    swarm = joined(2)
    swarm.count(swarm.ids[0], 0b0011)
    swarm.count(swarm.ids[1], 0b0010)
    assert swarm.did(swarm.ids[1], DiscardGradient) == [DiscardGradient()]
    assert swarm.ledgers[swarm.ids[0]].tally.counted == 0b0011


def test_a_member_that_cannot_reduce_is_removed_after_a_while() -> None:
    swarm = joined(3)
    swarm.reduces = False
    swarm.count(swarm.ids[0], ALL)
    for peer in swarm.ids[:2]:
        start = swarm.did(peer, StartReduce)[-1]
        assert isinstance(start, StartReduce)
        failed = ReduceFailed(swarm.now_s, start.index, start.ballot, swarm.ids[2])
        swarm.handle(peer, failed)
    swarm.pass_time(SETTINGS.reduce_s + 1)
    assert swarm.ids[2] not in [m.peer for m in newest(swarm, swarm.ids[0]).members]


def test_counting_goes_on_after_an_aborted_commit() -> None:
    """A member dies in the reduction, and what it had counted has to be counted by the others."""
    swarm = joined(3)
    swarm.reduces = False
    swarm.count(swarm.ids[0], ALL & ~1)
    swarm.count(swarm.ids[2], 1)
    assert swarm.ledgers[swarm.ids[1]].tally.frozen
    swarm.cut = {swarm.ids[2]}
    swarm.pass_time(5.0)
    assert len(newest(swarm, swarm.ids[0]).members) == 2
    assert not swarm.ledgers[swarm.ids[1]].tally.frozen
    assert swarm.ledgers[swarm.ids[0]].tally.counted == ALL & ~1


# --- losing members ---


def test_a_silent_member_is_removed_and_comes_back() -> None:
    swarm = joined(3)
    swarm.cut = {swarm.ids[2]}
    swarm.busy = True
    swarm.pass_time(0.5)
    swarm.pass_time(3.0)
    assert len(newest(swarm, swarm.ids[0]).members) == 2
    swarm.cut = set()
    swarm.pass_time(3.0)
    assert swarm.ledgers[swarm.ids[2]].expelled is not None
    assert isinstance(swarm.did(swarm.ids[2], Expelled)[-1], Expelled)


def test_a_minority_decides_nothing_and_says_why() -> None:
    swarm = joined(5)
    swarm.busy = True
    swarm.pass_time(0.5)
    swarm.cut = set(swarm.ids[2:])
    index = newest(swarm, swarm.ids[0]).index
    swarm.pass_time(20.0)
    assert {newest(swarm, peer).index for peer in swarm.ids[:2]} == {index}
    lead = swarm.ledgers[swarm.ids[0]].lead
    assert lead is not None
    assert "majority" in lead.waiting_for()


def test_a_lead_never_removes_so_many_that_the_rest_could_not_decide() -> None:
    """If they were gone it could not be decided; if they are not, they would agree to their own removal."""
    swarm = joined(4)
    swarm.busy = True
    swarm.pass_time(0.5)
    swarm.drops = lambda source, target, message: target == swarm.ids[0] != source
    swarm.pass_time(3.0)
    swarm.drops = lambda source, target, message: False
    swarm.pass_time(3.0)
    assert len(newest(swarm, swarm.ids[0]).members) == 4


def test_a_dead_lead_is_replaced_by_the_smallest_that_lives() -> None:
    swarm = joined(4)
    swarm.busy = True
    swarm.pass_time(0.5)
    swarm.pass_time(1.0)
    lead = lead_of(swarm)
    swarm.cut = {lead}
    for peer in swarm.ids:
        swarm.handle(peer, PeerDown(swarm.now_s, lead))
    swarm.pass_time(4.0)
    living = [peer for peer in swarm.ids if peer != lead]
    assert lead_of(swarm) == living[0]
    assert [m.peer for m in newest(swarm, living[0]).members] == living


def test_an_accepted_record_outlives_its_lead() -> None:
    """A new lead proposes what some member had accepted, and the step is applied as if nothing had happened."""
    swarm = joined(5)
    swarm.busy = True
    swarm.pass_time(0.5)
    lead = swarm.ids[0]
    accepter = swarm.ids[1]

    def only_one_hears(source: PeerID, target: PeerID, message: Message) -> bool:
        return isinstance(message, Accept) and target not in (accepter, lead)

    swarm.drops = only_one_hears
    swarm.count(lead, ALL)
    assert swarm.ledgers[accepter]._accepted is not None
    accepted = swarm.ledgers[accepter]._accepted
    swarm.drops = lambda source, target, message: False
    swarm.cut = {lead}
    for peer in swarm.ids[1:]:
        swarm.handle(peer, PeerDown(swarm.now_s, lead))
    swarm.pass_time(5.0)
    assert accepted is not None
    assert accepted in swarm.learned(swarm.ids[4])
    assert swarm.did(swarm.ids[4], ApplyStep) == [ApplyStep(accepted)]


def test_a_step_reduced_again_under_a_newer_ballot_is_the_same_step() -> None:
    """A member that has begun to reduce again still accepts what it had reduced before: the bytes are the same."""
    swarm = joined(3)
    swarm.count(swarm.ids[0], 0)
    peer, record = swarm.ids[1], newest(swarm, swarm.ids[1])
    index, first = record.index + 1, Ballot(0, record.lead)
    tallies = (MemberTally(swarm.ids[0], b"\x0f"),)
    swarm.cast(record.lead, peer, Reduce(index, first, 1, tallies))
    swarm.reduces = False
    swarm.cast(swarm.ids[2], peer, Prepare(index, Ballot(1, swarm.ids[2])))
    swarm.cast(swarm.ids[2], peer, Reduce(index, Ballot(1, swarm.ids[2]), 1, tallies))
    assert len(swarm.did(peer, StartReduce)) == 2
    assert swarm.ledgers[peer]._reducing.holds(bytes(32))


# --- ballots ---


def test_a_member_promises_nothing_below_its_promise() -> None:
    swarm = joined(3)
    peer, index = swarm.ids[1], newest(swarm, swarm.ids[1]).index + 1
    swarm.cast(swarm.ids[2], peer, Prepare(index, Ballot(5, swarm.ids[2])))
    promise = swarm.sent(peer, Promise)[-1]
    assert isinstance(promise, Promise)
    assert promise.ballot == Ballot(5, swarm.ids[2])
    swarm.cast(swarm.ids[0], peer, Prepare(index, Ballot(4, swarm.ids[0])))
    refused = swarm.sent(peer, Refused)[-1]
    assert isinstance(refused, Refused)
    assert refused.promised == Ballot(5, swarm.ids[2])


def test_asking_a_promise_to_somebody_elses_ballot_is_blamed() -> None:
    swarm = joined(3)
    index = newest(swarm, swarm.ids[1]).index + 1
    swarm.cast(swarm.ids[2], swarm.ids[1], Prepare(index, Ballot(5, swarm.ids[0])))
    blame = swarm.did(swarm.ids[1], Blame)[-1]
    assert isinstance(blame, Blame)
    assert blame.peer == swarm.ids[2]


def test_an_absurd_round_is_ignored() -> None:
    swarm = joined(3)
    index = newest(swarm, swarm.ids[1]).index + 1
    before = len(swarm.sent(swarm.ids[1], Promise))
    swarm.cast(swarm.ids[2], swarm.ids[1], Prepare(index, Ballot(2**62, swarm.ids[2])))
    assert len(swarm.sent(swarm.ids[1], Promise)) == before


def test_a_lead_that_hears_of_a_higher_promise_steps_back() -> None:
    swarm = joined(3)
    lead = lead_of(swarm)
    ledger = swarm.ledgers[lead]
    record = newest(swarm, lead)
    refused = Refused(record.index + 1, Ballot(0, lead), Ballot(3, swarm.ids[2]), "promised")
    swarm.cast(swarm.ids[1], lead, refused)
    assert ledger.lead is None
    assert ledger.lead_peer == swarm.ids[2]


# --- catching up ---


def test_who_missed_a_record_asks_for_it_and_is_told() -> None:
    swarm = joined(3)
    missing = swarm.ids[2]
    swarm.drops = lambda source, target, message: target == missing and isinstance(message, Records)
    swarm.count(swarm.ids[0], ALL)
    assert newest(swarm, missing).step == 0
    swarm.drops = lambda source, target, message: False
    swarm.pass_time(5.0)
    assert newest(swarm, missing).digest() == newest(swarm, swarm.ids[0]).digest()
    assert len(swarm.did(missing, ApplyStep)) == 1


def test_records_out_of_order_are_not_learned_but_asked_for() -> None:
    swarm = joined(3)
    peer = swarm.ids[2]
    record = newest(swarm, peer)
    later = dataclasses.replace(record, index=record.index + 2)
    swarm.drops = lambda source, target, message: source == peer
    swarm.cast(swarm.ids[0], peer, Records((later,), later.index))
    assert newest(swarm, peer) == record
    assert RecordsWanted(record.index + 1) in swarm.sent(peer, RecordsWanted)


def test_strangers_are_not_believed() -> None:
    swarm = joined(3)
    record = newest(swarm, swarm.ids[1])
    stranger = PeerID(b"stranger")
    coup = dataclasses.replace(
        record, index=record.index + 1, previous=record.digest(), lead=stranger, members=()
    )
    for message in (
        Records((coup,), coup.index),
        Records((coup,), 0),
        Accept(coup.index, Ballot(9, stranger), coup),
        Heartbeat(record.index + 50, bytes(32), Ballot(9, stranger)),
        Refused(coup.index, Ballot(0, record.lead), Ballot(9, stranger), ""),
        TallyReport(record.index, 1, b"\x0f"),
    ):
        swarm.cast(stranger, swarm.ids[1], message)
        swarm.cast(stranger, record.lead, message)
    assert newest(swarm, swarm.ids[1]) == record
    assert lead_of(swarm) == record.lead


def test_a_member_with_another_history_is_blamed() -> None:
    swarm = joined(3)
    record = newest(swarm, swarm.ids[1])
    swarm.cast(
        record.lead, swarm.ids[1], Heartbeat(record.index, bytes(32), Ballot(0, record.lead))
    )
    assert swarm.did(swarm.ids[1], Blame) == [Blame(record.lead, "its history differs from ours")]


def test_late_heartbeats_are_answered_with_what_their_sender_lacks() -> None:
    swarm = joined(3)
    record = newest(swarm, swarm.ids[1])
    before = len(swarm.sent(swarm.ids[1], Records))
    late = Heartbeat(record.index - 1, bytes(32), Ballot(0, record.lead))
    swarm.cast(record.lead, swarm.ids[1], late)
    assert swarm.did(swarm.ids[1], Blame) == []
    answer = swarm.sent(swarm.ids[1], Records)[before]
    assert isinstance(answer, Records)
    assert answer.records == (record,)


# --- strangers ---


def test_a_stranger_cannot_talk_a_sole_member_out_of_its_place() -> None:
    """Nothing can have been decided without it, so a stranger that knows a later record lies."""
    swarm = Swarm(1)
    founder, stranger = swarm.ids[0], PeerID(b"stranger")
    swarm.handle(founder, ContactsFound(swarm.now_s, (stranger,)))
    record = newest(swarm, founder)
    for _ in range(40):
        swarm.cast(stranger, founder, Heartbeat(999, record.digest(), Ballot(0, stranger)))
        swarm.pass_time(1.0)
    assert swarm.ledgers[founder].expelled is None
    assert swarm.ledgers[founder].member is not None


@pytest.mark.parametrize(
    "change",
    [
        {"members": (Member(PeerID(b"peer00"), 1, 1000, 3),)},
        {"members": (Member(PeerID(b"peer00"), 1, 0, 9),)},
        {"step": 101},
    ],
)
def test_an_outsider_does_not_believe_an_impossible_record(change: dict[str, Any]) -> None:
    swarm = Swarm(1)
    outsider = Ledger(PeerID(b"outsider"), 1, SETTINGS, random.Random(1))
    teller = swarm.ids[0]
    outsider.handle(ContactsFound(0.0, (teller,)))
    possible = dataclasses.replace(
        newest(swarm, teller), index=3, members=(Member(teller, 1, 0, 3),)
    )
    record = dataclasses.replace(possible, **change)
    effects = outsider.handle(Received(0.0, teller, Records((record,), 3)))
    assert outsider.record is None
    assert [type(effect) for effect in effects] == [Blame]
    outsider.handle(Received(0.0, teller, Records((possible,), 3)))
    assert outsider.record == possible


# --- leaving ---


def test_a_member_that_wants_to_leave_is_let_go() -> None:
    swarm = joined(3)
    swarm.handle(swarm.ids[2], DrainWanted(swarm.now_s))
    assert swarm.did(swarm.ids[2], Expelled) == [Expelled("left", let_go=True)]
    assert len(newest(swarm, swarm.ids[0]).members) == 2


def test_a_leaving_member_stays_until_its_work_is_committed() -> None:
    swarm = joined(3)
    swarm.count(swarm.ids[2], 0b0011)
    swarm.handle(swarm.ids[2], DrainWanted(swarm.now_s))
    swarm.pass_time(2.0)
    assert swarm.ledgers[swarm.ids[2]].expelled is None
    swarm.count(swarm.ids[0], 0b1100)
    swarm.pass_time(1.0)
    assert newest(swarm, swarm.ids[0]).step == 1
    assert swarm.did(swarm.ids[2], Expelled) == [Expelled("left", let_go=True)]


def test_a_leaving_lead_names_a_successor() -> None:
    swarm = joined(3)
    lead = lead_of(swarm)
    swarm.handle(lead, DrainWanted(swarm.now_s))
    swarm.pass_time(1.0)
    swarm.cut = {lead}
    assert newest(swarm, lead_of(swarm)).lead == lead_of(swarm) != lead


def test_the_last_copy_of_a_stage_stays_until_another_member_has_it() -> None:
    swarm = joined(3, stages=2)
    stage_of = {m.peer: m.stage for m in newest(swarm, swarm.ids[0]).members}
    only = next(peer for peer, stage in stage_of.items() if stage == 1)
    swarm.count(swarm.ids[0], ALL)
    swarm.count(only, ALL)
    swarm.pass_time(1.0)
    assert newest(swarm, only).step == 1
    swarm.handle(only, DrainWanted(swarm.now_s))
    swarm.pass_time(1.0)
    moved = next(p for p in swarm.ids if p != only and swarm.ledgers[p].member.stage == 1)  # type: ignore[union-attr]
    assert swarm.ledgers[only].expelled is None
    assert swarm.ledgers[only].asked_to_stay
    admitted = swarm.did(moved, Admitted)[-1]
    assert isinstance(admitted, Admitted)
    assert admitted.donors == (only,)
    swarm.handle(moved, StateLoaded(swarm.now_s))
    swarm.pass_time(5.0)
    assert swarm.did(only, Expelled) == [Expelled("left", let_go=True)]


def test_a_member_given_up_for_dead_does_not_count_as_another_holder() -> None:
    """The record that gives up one of two holders may not let the other one go."""
    swarm = joined(5, stages=2)
    holders = [m.peer for m in newest(swarm, swarm.ids[0]).members if m.stage == 1]
    assert len(holders) == 2
    dead, leaver = holders
    for peer in (swarm.ids[0], leaver):
        swarm.count(peer, ALL)
    swarm.pass_time(1.0)
    assert newest(swarm, leaver).step == 1
    # While another record is being decided, one holder says that it leaves and the other dies.
    lead = lead_of(swarm)
    bystander = next(p for p in swarm.ids if p not in (lead, dead, leaver))
    swarm.drops = lambda source, target, message: isinstance(message, Accepted) and source != target
    swarm.handle(bystander, TallyChanged(swarm.now_s, broken=True))
    swarm.handle(leaver, DrainWanted(swarm.now_s))
    swarm.cut = {dead}
    swarm.handle(lead, PeerDown(swarm.now_s, dead))
    swarm.drops = lambda source, target, message: False
    swarm.pass_time(3.0)
    assert dead not in [m.peer for m in newest(swarm, leaver).members]
    assert swarm.ledgers[leaver].expelled is None
    assert swarm.ledgers[leaver].asked_to_stay


def test_the_state_of_step_1_can_not_be_built_anew() -> None:
    """At step 0 everybody may leave, since everybody can make that state; not by the record that commits step 1."""
    swarm = joined(2, stages=2)
    only = next(m.peer for m in newest(swarm, swarm.ids[0]).members if m.stage == 1)
    swarm.count(only, ALL)
    swarm.handle(only, DrainWanted(swarm.now_s))
    swarm.count(swarm.ids[0], ALL)
    assert newest(swarm, swarm.ids[0]).step == 1
    assert swarm.ledgers[only].expelled is None


def test_a_join_repeated_after_admission_changes_nothing() -> None:
    swarm = joined(3)
    record = newest(swarm, swarm.ids[0])
    swarm.cast(swarm.ids[2], record.lead, JoinWanted(1))
    assert newest(swarm, swarm.ids[0]) == record


# --- claims and rumours ---


def test_a_ballot_that_another_member_names_is_not_followed() -> None:
    swarm = joined(4)
    record = newest(swarm, swarm.ids[1])
    forged = Heartbeat(record.index, record.digest(), Ballot(2**40, swarm.ids[2]))
    swarm.cast(swarm.ids[3], swarm.ids[1], forged)
    assert swarm.ledgers[swarm.ids[1]].lead_peer == record.lead
    swarm.count(swarm.ids[1], ALL)
    swarm.pass_time(1.0)
    assert newest(swarm, swarm.ids[1]).step == 1


def test_one_member_cannot_talk_another_out_of_its_place() -> None:
    """It claims later records, to the lead and to one that follows, for longer than a member waits for such."""
    swarm = joined(4)
    index = newest(swarm, swarm.ids[0]).index
    for _ in range(40):
        for victim in swarm.ids[:3]:
            swarm.cast(swarm.ids[3], victim, Records((), index + 50, cut=True))
        swarm.pass_time(0.5)
    assert all(swarm.ledgers[peer].expelled is None for peer in swarm.ids)
    assert newest(swarm, swarm.ids[0]).index == index


@pytest.mark.parametrize(("claimants", "gives_up"), [(1, False), (2, True)])
def test_two_members_must_say_so_before_a_third_believes_itself_left_behind(
    claimants: int, gives_up: bool
) -> None:
    swarm = joined(5)
    victim = swarm.ledgers[swarm.ids[4]]
    later = Records((), newest(swarm, swarm.ids[4]).index + 500, cut=True)
    for _ in range(40):
        swarm.now_s += 0.25
        for peer in swarm.ids[1 : 1 + claimants]:
            victim.handle(Received(swarm.now_s, peer, later))
        victim.handle(Tick(swarm.now_s))
    assert (victim.expelled is not None) is gives_up


def spread(swarm: Swarm, peer: PeerID) -> list[int]:
    return [effect.rumour.index for effect in swarm.did(peer, Spread) if isinstance(effect, Spread)]


def test_the_lead_spreads_a_rumour_when_the_members_change_and_else_none() -> None:
    swarm = joined(3)
    swarm.busy = True
    swarm.pass_time(3.0)
    lead = lead_of(swarm)
    assert spread(swarm, lead)[-1] == newest(swarm, lead).index
    before = spread(swarm, lead)
    commit_step(swarm)
    swarm.pass_time(30.0)
    assert spread(swarm, lead) == before
    assert all(spread(swarm, peer) == [] for peer in swarm.ids if peer != lead)


def test_an_outsider_that_no_directory_helps_comes_in_by_a_rumour() -> None:
    swarm = joined(3)
    lead = lead_of(swarm)
    newcomer = swarm.ids[2]
    swarm.contacts = lambda: None  # type: ignore[method-assign]
    swarm.restart(newcomer)
    swarm.pass_time(1.0)
    assert swarm.ledgers[newcomer].member is None
    rumour = Rumour(newest(swarm, lead).index)
    swarm.handle(newcomer, Heard(swarm.now_s, lead, rumour))
    swarm.pass_time(5.0)
    assert swarm.ledgers[newcomer].member is not None


def test_a_member_asks_the_members_about_a_strangers_rumour_and_keeps_its_place() -> None:
    swarm = joined(3)
    peer, index = swarm.ids[1], newest(swarm, swarm.ids[1]).index
    stranger = PeerID(b"stranger")
    for _ in range(40):
        effects = swarm.ledgers[peer].handle(Heard(swarm.now_s, stranger, Rumour(index + 9)))
        asked = {effect.peer for effect in effects if isinstance(effect, Send)}
        assert stranger not in asked
        assert len(effects) <= 2
        swarm.pass_time(0.5)
    assert swarm.ledgers[peer].expelled is None
    assert newest(swarm, peer).index == index


def test_a_rumour_of_what_is_known_is_no_news() -> None:
    swarm = joined(3)
    peer = swarm.ids[1]
    rumour = Rumour(newest(swarm, peer).index)
    assert swarm.ledgers[peer].handle(Heard(swarm.now_s, PeerID(b"stranger"), rumour)) == []
    assert not swarm.ledgers[peer].knows(PeerID(b"stranger"))


def test_an_outsider_follows_no_circle_of_peers_that_name_each_other() -> None:
    """Each of them takes the other for the lead. Every question is answered at once, so it asked without end."""
    outsider = Ledger(PeerID(b"outsider"), 1, SETTINGS, random.Random(0))
    first, second = PeerID(b"first"), PeerID(b"second")
    outsider.handle(ContactsFound(0.0, (first, second)))
    both = tuple(Member(peer, 1, 0, 3) for peer in (first, second))
    record = Record(index=3, step=0, lead=first, members=both)
    outsider.handle(Received(0.5, first, Records((record,), 3)))
    asked = []
    for peer, other in ((first, second), (second, first)) * 3:
        beat = Heartbeat(3, bytes(32), Ballot(0, other))
        effects = outsider.handle(Received(1.0, peer, beat))
        asked += [e for e in effects if isinstance(e, Send) and isinstance(e.message, JoinWanted)]
    assert [send.peer for send in asked] == [second]
