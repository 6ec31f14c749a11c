"""The lead by itself: situations that a whole swarm rarely gets into."""

from __future__ import annotations

from dataclasses import replace

import pytest

import protocols.ledger.lead as module
from protocols.ledger.events import Effect, Send
from protocols.ledger.lead import Lead, Phase
from protocols.ledger.messages import Accept, JoinWanted, Reduced, TallyReport
from protocols.ledger.pulse import Pulse
from protocols.ledger.view import Ballot, Record, pack_ids
from tests.protocols.ledger.swarm import SETTINGS, members, peer_ids

ALL = pack_ids(0b1111)


def test_a_step_that_counts_something_twice_is_not_proposed_however_late_that_is_found() -> None:
    """A member was thought dead, but could not be removed without it; then it came back, having counted more."""
    other, me = peer_ids(2)
    record = Record(index=0, step=0, lead=me, members=members([0, 0]))
    lead = Lead(me, SETTINGS, Pulse(SETTINGS.silence_s))
    ballot = Ballot(0, me)
    lead.begin(0.0, record, record.view, record.digest(), ballot)
    lead.received(0.0, other, TallyReport(0, 1, b""))
    lead.received(0.0, me, TallyReport(0, 1, ALL))
    assert lead.phase is Phase.REDUCING
    lead.tick(100.0)
    assert lead.waiting_for() == "a majority of the members to be heard"
    lead.received(101.0, other, TallyReport(0, 1, ALL))
    lead.received(101.0, me, Reduced(1, ballot, bytes(32), 1.0, 1.0))
    effects = lead.received(101.0, other, Reduced(1, ballot, bytes(32), 1.0, 1.0))
    proposed = proposals(effects)
    assert proposed
    assert not any(each.commits_step for each in proposed)
    assert [m.since for m in proposed[0].members if m.peer == other] == [1]


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


def proposals(effects: list[Effect]) -> list[Record]:
    """Return the records that these effects ask to be accepted."""
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message.record for message in sent if isinstance(message, Accept)]
