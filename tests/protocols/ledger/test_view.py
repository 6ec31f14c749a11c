"""Members, quorums, and what makes a record acceptable."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerID
from protocols.ledger.view import (
    Ballot,
    Member,
    MemberTally,
    Record,
    StageCommit,
    View,
    coverage_problem,
    ids_of,
    mask_of,
    membership_problem,
    pack_ids,
    unpack_ids,
)
from tests.protocols.ledger.swarm import members, peer_ids

ZERO = bytes(32)


@given(st.sets(st.integers(0, 300)))
def test_a_set_of_microbatches_survives_the_wire(ids: set[int]) -> None:
    assert ids_of(unpack_ids(pack_ids(mask_of(ids)))) == sorted(ids)


@given(st.integers(1, 9), st.data())
def test_any_two_quorums_of_a_view_share_a_member(size: int, data: st.DataObject) -> None:
    view = View(members([0] * size))
    peers = st.sets(st.sampled_from(peer_ids(size)))
    one, other = data.draw(peers), data.draw(peers)
    if view.is_quorum(one) and view.is_quorum(other):
        assert one & other


@given(st.integers(1, 9), st.data())
def test_of_two_sides_of_a_split_exactly_one_can_go_on(size: int, data: st.DataObject) -> None:
    view = View(members([0] * size))
    side = data.draw(st.sets(st.sampled_from(peer_ids(size))))
    assert view.is_quorum(side) != view.is_quorum(set(peer_ids(size)) - side)


def test_of_two_halves_the_one_with_the_smallest_peer_goes_on() -> None:
    view = View(members([0] * 4))
    first, second, third, fourth = peer_ids(4)
    assert view.is_quorum([first, fourth])
    assert not view.is_quorum([second, third])


def test_strangers_do_not_count_for_a_quorum() -> None:
    view = View(members([0] * 3))
    strangers = [PeerID(b"stranger%d" % number) for number in range(5)]
    assert not view.is_quorum([peer_ids(1)[0], *strangers])


def test_a_view_without_members_has_no_quorum() -> None:
    assert not View(()).is_quorum(peer_ids(3))


def step_record(tallies: dict[int, int], stages: tuple[int, ...] = (0, 0, 1)) -> Record:
    """Return a record in which member i counted tallies[i]."""
    peers = peer_ids(len(stages))
    return Record(
        index=4, step=2, lead=peers[0], members=members(stages), reduced_at=Ballot(0, peers[0]),
        tallies=tuple(MemberTally(peers[i], pack_ids(ids)) for i, ids in tallies.items()),
        stages=(StageCommit(ZERO, 1.0), StageCommit(ZERO, 1.0)),
    )  # fmt: skip


def problem_with(record: Record) -> str | None:
    return coverage_problem(record, View(members((0, 0, 1))), microbatches=4, stages=2)


def test_a_step_that_counts_everything_once_at_every_stage_is_right() -> None:
    assert problem_with(step_record({0: 0b0011, 1: 0b1100, 2: 0b1111})) is None


@pytest.mark.parametrize(
    ("tallies", "problem"),
    [
        ({0: 0b0011, 1: 0b1110, 2: 0b1111}, "twice"),
        ({0: 0b0011, 1: 0b0100, 2: 0b1111}, "misses"),
        ({0: 0b0011, 1: 0b1100}, "stage 1 misses"),
        ({0: 0b0011, 1: 0b11100, 2: 0b1111}, "foreign"),
    ],
)
def test_a_step_that_counts_anything_twice_or_not_at_all_is_wrong(
    tallies: dict[int, int], problem: str
) -> None:
    assert problem in (problem_with(step_record(tallies)) or "")


def test_a_tally_of_a_stranger_or_a_second_one_of_a_member_is_wrong() -> None:
    good = step_record({0: 0b0011, 1: 0b1100, 2: 0b1111})
    stranger = MemberTally(PeerID(b"stranger"), b"")
    for extra in (stranger, good.tallies[0]):
        problem = problem_with(dataclasses.replace(good, tallies=(*good.tallies, extra)))
        assert "no member" in (problem or "")


def record_with(changed: tuple[Member, ...], *, lead: PeerID | None = None) -> Record:
    return Record(index=7, step=1, lead=lead or changed[0].peer, members=changed)


def test_members_may_leave_and_be_marked_as_new_fenced_or_moved() -> None:
    before = members((0, 0, 1))
    view = View(before)
    fenced = dataclasses.replace(before[1], since=7)
    moved = dataclasses.replace(before[1], stage=1, since=7)
    restarted = dataclasses.replace(before[1], incarnation=2, since=7)
    newcomer = Member(PeerID(b"peer77"), 1, 0, 7)
    for changed in (
        (before[0], fenced),
        (before[0], moved),
        (before[0], restarted),
        (*before, newcomer),
    ):
        assert membership_problem(record_with(changed), view, stages=2) is None


def test_a_member_that_changes_without_being_marked_is_wrong() -> None:
    before = members((0, 0, 1))
    for unmarked in (
        dataclasses.replace(before[1], stage=1),
        dataclasses.replace(before[1], incarnation=2),
        dataclasses.replace(before[1], since=6),
    ):
        problem = membership_problem(record_with((before[0], unmarked)), View(before), stages=2)
        assert "without being marked" in (problem or "")


def test_members_are_sorted_and_listed_once() -> None:
    first, second, third = members((0, 0, 1))
    for wrong in ((second, first, third), (first, first)):
        assert "sorted" in (
            membership_problem(record_with(wrong), View((first, second, third)), stages=2) or ""
        )


def test_the_lead_is_a_member_and_hosts_a_stage_that_exists() -> None:
    before = members((0, 0, 1))
    problem = membership_problem(
        record_with(before, lead=PeerID(b"stranger")), View(before), stages=2
    )
    assert "lead" in (problem or "")
    assert "no stage" in (membership_problem(record_with(before), View(before), stages=1) or "")


def test_a_step_is_committed_by_all_stages() -> None:
    good = step_record({0: 0b0011, 1: 0b1100, 2: 0b1111})
    short = dataclasses.replace(good, stages=good.stages[:1])
    assert "all stages" in (membership_problem(short, View(good.members), stages=2) or "")


def test_two_records_that_differ_have_different_digests() -> None:
    record = step_record({0: 1})
    assert record.digest() == step_record({0: 1}).digest()
    assert record.digest() != dataclasses.replace(record, loss=1.0).digest()
