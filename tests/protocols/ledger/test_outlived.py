"""When a member that waits for a majority knows that there will be none."""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.outlived import Outlived
from protocols.ledger.view import Member, Record

A, B, C, D = (PeerID(bytes([0, 1, letter])) for letter in b"abcd")
RECORD = Record(
    index=3, step=2, lead=A, members=tuple(Member(peer, 1, 0, 0) for peer in (A, B, C, D))
)


def test_it_is_over_when_those_that_may_live_are_no_quorum() -> None:
    outlived = Outlived(fresh_s=2.0)
    assert not outlived.back(0.0, RECORD, B, 2), "the three others may decide"
    assert outlived.back(1.0, RECORD, A, 2), (
        "of two halves that without the smallest decides nothing"
    )


def test_half_of_the_members_with_the_smallest_may_decide() -> None:
    outlived = Outlived(fresh_s=2.0)
    assert not outlived.back(0.0, RECORD, C, 2)
    assert not outlived.back(0.0, RECORD, D, 2)
    assert outlived.back(0.0, RECORD, B, 2)


def test_who_has_not_said_it_lately_may_be_in_the_run() -> None:
    outlived = Outlived(fresh_s=2.0)
    assert not outlived.back(0.0, RECORD, A, 2)
    assert not outlived.back(2.1, RECORD, B, 2)
    assert outlived.back(2.2, RECORD, A, 2)


def test_a_stranger_and_the_life_that_the_record_names_say_nothing() -> None:
    outlived = Outlived(fresh_s=2.0)
    for peer, incarnation in ((PeerID(b"stranger"), 2), (A, 1), (B, 1), (C, 1), (D, 1)):
        assert not outlived.back(0.0, RECORD, peer, incarnation)
