"""Who comes again and again waits longer and longer."""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger import patience as module
from protocols.ledger.patience import Patience

ANNE, BERT = PeerID(b"anne"), PeerID(b"bert")


def test_the_first_time_a_peer_comes_in_at_once() -> None:
    assert Patience(2.0).may_come(0.0, ANNE)


def test_each_further_time_it_waits_twice_as_long_up_to_a_bound() -> None:
    patience = Patience(2.0)
    now_s, waits = 0.0, []
    for _ in range(9):
        patience.let_in(now_s, ANNE)
        began_s = now_s
        while not patience.may_come(now_s, ANNE):
            now_s += 1.0
        waits.append(now_s - began_s)
    assert waits == [2, 4, 8, 16, 32, 64, 128, 128, 128]
    assert patience.may_come(0.0, BERT)


def test_who_stayed_for_long_is_welcome_again() -> None:
    patience = Patience(2.0)
    patience.let_in(0.0, ANNE)
    patience.let_in(100.0, ANNE)
    assert patience.may_come(102.0, ANNE)


def test_strangers_cannot_fill_the_table() -> None:
    patience = Patience(2.0)
    for number in range(module._PEERS_MAX + 10):
        patience.let_in(0.0, PeerID(b"sybil%d" % number))
    assert len(patience._let_in) == module._PEERS_MAX
