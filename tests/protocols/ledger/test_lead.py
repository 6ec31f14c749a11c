"""The lead by itself: situations that a whole swarm rarely gets into."""

from __future__ import annotations

from protocols.ledger.events import Send
from protocols.ledger.lead import Lead, Phase
from protocols.ledger.messages import Accept, Reduced, TallyReport
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
    proposed = [e.message.record for e in effects if isinstance(e, Send) and isinstance(e.message, Accept)]  # fmt: skip
    assert proposed
    assert not any(each.commits_step for each in proposed)
    assert [m.since for m in proposed[0].members if m.peer == other] == [1]
