"""Who hosts what: newcomers, moves, and leaving without losing a stage's state."""

from __future__ import annotations

import pytest

from protocols.ledger.messages import HeldState, JoinWanted
from protocols.ledger.placement import Staffing, Standing
from tests.protocols.ledger.swarm import members, peer_ids


def staffing(text: str, *, stages: int, step: int = 5) -> Staffing:
    """Build from one word per member: its stage, then "-" if it has no state yet, "<" if it wants to leave."""
    standings = []
    for number, word in enumerate(text.split()):
        member = members([0] * number + [int(word[0])])[number]
        standings.append(
            Standing(member, synced="-" not in word, leaving="<" in word, counted=number)
        )
    return Staffing(standings, stages=stages, step=step)


def leaver(word: str) -> Standing:
    member = members([int(word[0])])[0]
    return Standing(member, synced="-" not in word, leaving=True, counted=0)


PEERS = peer_ids(9)


@pytest.mark.parametrize(
    ("join", "stage"),
    [
        (JoinWanted(1), 1),  # the stage with the fewest members
        (JoinWanted(1, stage=0), 0),
        (JoinWanted(1, stage=7), 1),
        (
            JoinWanted(1, stage=0, holds=HeldState(2, step=5)),
            2,
        ),  # its state is worth more than its wish
        (JoinWanted(1, holds=HeldState(2, step=4)), 1),  # an old state is worth nothing
        (JoinWanted(1, holds=HeldState(7, step=5)), 1),
    ],
)
def test_a_newcomer_goes_where_it_helps_most(join: JoinWanted, stage: int) -> None:
    assert staffing("0 0 1 2 2", stages=3).stage_for(join) == stage


def test_a_leaving_member_does_not_count_for_its_stage() -> None:
    assert staffing("0 0< 1 2 2", stages=3).stage_for(JoinWanted(1)) == 0


def test_who_holds_the_last_copy_stays_until_another_has_it() -> None:
    assert not staffing("0 0 1<", stages=2).may_leave(leaver("1"))
    assert not staffing("0 0 1< 1-", stages=2).may_leave(leaver("1"))
    assert staffing("0 0 1< 1", stages=2).may_leave(leaver("1"))


def test_two_leaving_members_do_not_count_on_each_other() -> None:
    assert not staffing("0 0 1< 1<", stages=2).may_leave(leaver("1"))


def test_who_holds_nothing_may_leave() -> None:
    assert staffing("0 1<", stages=2).may_leave(leaver("1-"))
    assert staffing("0 1<", stages=2, step=0).may_leave(leaver("1"))


def test_when_all_leave_all_may() -> None:
    assert staffing("0< 0< 1<", stages=2).may_leave(leaver("1"))


def test_a_stage_whose_last_members_leave_gets_one_of_a_stage_that_can_spare_it() -> None:
    assert staffing("0 0 1<", stages=2).rescue() == (PEERS[0], 1)
    assert staffing("0 1<", stages=2).rescue() is None  # nobody can be spared
    assert staffing("0 0 1< 1-", stages=2).rescue() is None  # somebody is fetching it already


def test_the_one_moved_is_the_one_that_costs_least() -> None:
    assert staffing("0 0 0- 1<", stages=2).rescue() == (PEERS[2], 1)


def test_nobody_is_moved_to_a_stage_whose_state_nobody_has() -> None:
    assert staffing("0 0 0 1-<", stages=2).rescue() is None
    assert staffing("0 0 0", stages=2).rescue() is None


def test_before_the_first_step_every_node_can_serve_every_stage() -> None:
    assert staffing("0 0 0", stages=2, step=0).rescue() == (PEERS[0], 1)
    assert staffing("0 0 0 1", stages=2, step=0).rescue(replicas=2) == (PEERS[0], 1)


def test_a_stage_with_one_member_is_reinforced_by_one_with_three() -> None:
    assert staffing("0 0 0 1", stages=2).reinforce() == (PEERS[0], 1)
    assert staffing("0 0 1", stages=2).reinforce() is None


def test_there_is_one_transfer_at_a_time() -> None:
    assert staffing("0 0 0 0- 1", stages=2).reinforce() is None
    assert staffing("0 0 0 0< 1", stages=2).reinforce() is None


def test_stages_without_any_copy_are_named() -> None:
    assert staffing("0 1- 2<", stages=4).stateless() == [1, 3]
