"""The checks of this tier can fail: a history that forks, a step that misses or repeats a microbatch, two states."""

from __future__ import annotations

import dataclasses

import pytest

from protocols.ledger.view import Record
from tests.node.demo.pipeline.records import PEERS, Log, members
from tests.processes.history import check_counted_once, check_same_states, one_history


def two_steps() -> list[Record]:
    log = Log(0, 0, 1)
    for _ in range(2):
        log.commits({PEERS[0]: [0, 2], PEERS[1]: [1], PEERS[2]: [0, 1, 2]})
    return log.records


def check(records: list[Record]) -> int:
    return check_counted_once(records, microbatches=3, stages=2)


def test_a_whole_history_passes_and_is_counted() -> None:
    records = two_steps()
    assert check(one_history({"a": records[:2], "b": records[1:]})) == 2


def test_a_record_that_two_journals_tell_differently_is_found() -> None:
    records = two_steps()
    other = dataclasses.replace(records[-1], held_out_loss=9.0)
    with pytest.raises(AssertionError, match="b has another record 2"):
        one_history({"a": records, "b": [other]})


def test_a_record_that_follows_another_one_is_found() -> None:
    records = two_steps()
    other = dataclasses.replace(records[1], held_out_loss=9.0)
    with pytest.raises(AssertionError, match="record 2 follows another one"):
        one_history({"a": [records[0], other], "b": [records[2]]})


@pytest.mark.parametrize(
    ("counted", "problem"), [([0], "misses"), ([0, 1, 2], "twice"), ([0, 2, 3], "foreign")]
)
def test_a_microbatch_that_is_not_counted_once_is_found(counted: list[int], problem: str) -> None:
    log = Log(0, 0, 1)
    log.commits({PEERS[0]: counted, PEERS[1]: [1], PEERS[2]: [0, 1, 2]})
    with pytest.raises(AssertionError, match=problem):
        check(log.records)


def test_a_step_after_a_gap_is_not_said_to_be_checked() -> None:
    first, _, last = two_steps()
    assert check([first, last]) == 0
    assert members(0, 0, 1) == first.members


def test_two_states_of_one_step_are_found() -> None:
    check_same_states([{(0, 1): {"x"}, (1, 1): {"y"}}, {(0, 1): {"x"}}])
    with pytest.raises(AssertionError, match="more than one state"):
        check_same_states([{(0, 1): {"x"}}, {(0, 1): {"z"}}])
