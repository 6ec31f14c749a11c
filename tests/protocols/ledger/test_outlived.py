"""When a member knows that its run cannot go on but from the disks."""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.outlived import LostStages, Outlived
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


def test_all_go_back_once_a_lost_stage_is_on_members_disks_and_nobody_came_with_more() -> None:
    lost = LostStages(patience_s=30.0)
    lost.back(D, {1})
    assert not lost.are_due(0.0, RECORD, [1])
    assert not lost.are_due(29.0, RECORD, [1])
    assert lost.are_due(30.0, RECORD, [1])


def test_who_comes_with_the_state_ends_the_wait() -> None:
    lost = LostStages(patience_s=30.0)
    lost.back(D, {1})
    assert not lost.are_due(0.0, RECORD, [1])
    assert not lost.are_due(20.0, RECORD, [])
    assert not lost.are_due(40.0, RECORD, [1])
    assert lost.are_due(70.0, RECORD, [1])


def test_what_no_members_disk_has_is_waited_for() -> None:
    lost = LostStages(patience_s=30.0)
    lost.back(PeerID(b"stranger"), {0, 1})
    lost.back(D, {1})
    for now_s in (0.0, 100.0):
        assert not lost.are_due(now_s, RECORD, [0, 1])
    lost.back(C, {0})
    assert not lost.are_due(200.0, RECORD, [0, 1])
    assert lost.are_due(230.0, RECORD, [0, 1])
