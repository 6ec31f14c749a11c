"""When a member knows that too few are left to decide."""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.outlived import Outlived
from protocols.ledger.view import Member, Record

A, B, C, D = (PeerID(bytes([0, 1, letter])) for letter in b"abcd")
RECORD = Record(
    index=3, step=2, lead=A, members=tuple(Member(peer, 1, 0, 0) for peer in (A, B, C, D))
)


def test_it_is_over_when_those_that_may_live_are_no_quorum() -> None:
    outlived = Outlived()
    assert not outlived.back(RECORD, B, 2), "the three others may decide"
    assert not outlived.back(RECORD, B, 3), "the same once more"
    assert outlived.back(RECORD, A, 2), "without the smallest PeerID half of them decide nothing"


def test_half_of_the_members_with_the_smallest_may_decide() -> None:
    outlived = Outlived()
    assert not outlived.back(RECORD, C, 2)
    assert not outlived.back(RECORD, D, 2)
    assert outlived.back(RECORD, B, 2)


def test_who_was_let_in_again_lives() -> None:
    outlived = Outlived()
    assert not outlived.back(RECORD, A, 2)
    members = (Member(A, 9, 0, 4), *RECORD.members[1:])
    after = Record(index=4, step=2, lead=B, members=members)
    assert not outlived.back(after, B, 2)
    assert outlived.back(after, A, 10)


def test_a_stranger_and_the_life_that_the_record_names_say_nothing() -> None:
    outlived = Outlived()
    for peer, incarnation in ((PeerID(b"stranger"), 2), (A, 1), (B, 1), (C, 1), (D, 1)):
        assert not outlived.back(RECORD, peer, incarnation)
