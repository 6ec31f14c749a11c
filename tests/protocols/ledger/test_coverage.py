"""What the stages have counted, from reports that may contradict each other."""

from __future__ import annotations

from protocols.ledger.coverage import Coverage
from tests.protocols.ledger.swarm import members

FULL = 0b1111
FRONT, OTHER_FRONT, BACK = members([0, 0, 1])


def test_done_is_what_every_stage_has_counted() -> None:
    coverage = Coverage(2, FULL)
    coverage.add(FRONT, 0b0011)
    coverage.add(OTHER_FRONT, 0b1100)
    coverage.add(BACK, 0b0110)
    assert coverage.begun
    assert coverage.done == 0b0110
    coverage.add(BACK, FULL)
    assert coverage.complete


def test_the_first_claim_stands_and_all_of_the_later_one_is_left_out() -> None:
    coverage = Coverage(1, FULL)
    coverage.add(FRONT, 0b0001)
    coverage.add(OTHER_FRONT, 0b0100)
    coverage.add(FRONT, 0b0101)
    assert coverage.disputed == {FRONT.peer}
    assert coverage.done == 0b0100
    coverage.add(FRONT, FULL)
    assert coverage.done == 0b0100


def test_what_was_left_out_may_be_counted_by_others() -> None:
    coverage = Coverage(1, FULL)
    coverage.add(FRONT, 0b0001)
    coverage.dispute(FRONT)
    coverage.add(OTHER_FRONT, FULL)
    assert coverage.disputed == {FRONT.peer}
    assert coverage.complete


def test_two_stages_count_the_same_without_contradiction() -> None:
    coverage = Coverage(2, FULL)
    coverage.add(FRONT, FULL)
    coverage.add(BACK, FULL)
    assert not coverage.disputed
    assert coverage.complete
