"""Standing for lead: whose promises make a quorum."""

from __future__ import annotations

import random

from protocols.ids import PeerID
from protocols.ledger.candidacy import Candidacy
from protocols.ledger.messages import Promise, TallyReport
from protocols.ledger.pulse import Pulse
from protocols.ledger.view import Ballot, View
from tests.protocols.ledger.swarm import SETTINGS, members, peer_ids


def promise(ballot: Ballot) -> Promise:
    return Promise(1, ballot, None, None, TallyReport(0, 1, b""))


def test_a_promise_to_an_earlier_round_does_not_count_for_a_later_one() -> None:
    """Who promised the earlier one may have promised, and accepted, something else since: two records could be decided."""
    me, first, second, third, lead = peer_ids(5)
    view = View(members([0] * 5))
    candidacy = Candidacy(me, SETTINGS, Pulse(SETTINGS.silence_s), random.Random(0))
    before = candidacy.stand(0.0, Ballot(0, lead))
    for peer in (me, first):
        assert candidacy.promised(peer, promise(before), view) is None
    again = candidacy.stand(5.0, before)
    for peer in (me, second):
        assert candidacy.promised(peer, promise(again), view) is None
    promises = candidacy.promised(third, promise(again), view)
    assert promises is not None
    assert set(promises) == {me, second, third}


def test_a_quorum_of_promises_ends_the_candidacy_once() -> None:
    me, other, lead = peer_ids(3)
    view = View(members([0] * 3))
    candidacy = Candidacy(me, SETTINGS, Pulse(SETTINGS.silence_s), random.Random(0))
    ballot = candidacy.stand(0.0, Ballot(0, lead))
    assert candidacy.promised(me, promise(ballot), view) is None
    found = candidacy.promised(other, promise(ballot), view)
    assert found is not None
    assert candidacy.ballot is None
    assert PeerID(lead) not in found
