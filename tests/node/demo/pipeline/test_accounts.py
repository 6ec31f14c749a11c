"""The proof of "exactly once" from the commit records: what is missing, what is there twice, what proves nothing."""

from __future__ import annotations

import dataclasses

from node.demo.scenarios.pipeline.accounts import audit, counted_by, merge_journals
from protocols.ledger.view import Record
from tests.node.demo.pipeline.records import PEERS, Log, members

A, B, C, D = PEERS[:4]
EXPECTED = {1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}


def two_steps() -> Log:
    """Two stages of two replicas; everything is counted once."""
    log = Log(0, 0, 1, 1)
    log.commits({A: [0, 2], B: [1, 3], C: [0, 1, 2], D: [3]})
    log.commits({A: [0, 1, 2, 3], C: [0, 1], D: [2, 3]})
    return log


def test_a_run_that_counts_everything_once_has_nothing_missing_and_nothing_repeated() -> None:
    accounts = audit([two_steps().records], stages=2, expected=EXPECTED)
    assert (accounts.expected, accounts.missing, accounts.repeated) == (16, 0, 0)
    assert accounts.problems == ()


def test_a_microbatch_that_one_stage_did_not_count_is_missing_once() -> None:
    log = Log(0, 1)
    log.commits({A: [0, 1, 2, 3], B: [0, 1, 3]})
    assert audit([log.records], stages=2, expected={1: range(4)}).missing == 1


def test_a_step_that_was_never_committed_is_missing_at_every_stage() -> None:
    accounts = audit([two_steps().records[:2]], stages=2, expected=EXPECTED)
    assert accounts.missing == 8


def test_a_microbatch_that_two_replicas_counted_is_repeated() -> None:
    log = Log(0, 0)
    log.commits({A: [0, 1, 2], B: [2, 3]})
    accounts = audit([log.records], stages=1, expected={1: range(4)})
    assert (accounts.missing, accounts.repeated) == (0, 1)


def test_a_microbatch_that_the_step_does_not_have_counts_as_repeated() -> None:
    log = Log(0)
    log.commits({A: [0, 1, 2, 3, 4]})
    assert audit([log.records], stages=1, expected={1: range(4)}).repeated == 1


def test_a_step_after_the_last_one_counts_as_repeated() -> None:
    accounts = audit([two_steps().records], stages=2, expected={1: range(4)})
    assert (accounts.missing, accounts.repeated) == (0, 8)


def test_who_counts_for_which_stage_is_read_from_the_record_before() -> None:
    """B moves from stage 0 to stage 1 by the very record that commits what it counted at stage 0."""
    log = Log(0, 0, 1)
    moved = [
        dataclasses.replace(m, stage=1, since=1) if m.peer == B else m for m in members(0, 0, 1)
    ]
    log.commits({A: [0], B: [1, 2, 3], C: [0, 1, 2, 3]}, after=moved)
    log.commits({A: [0, 1, 2, 3], B: [0, 1], C: [2, 3]})
    accounts = audit([log.records], stages=2, expected=EXPECTED)
    assert (accounts.missing, accounts.repeated, accounts.problems) == (0, 0, ())


def test_the_work_of_a_peer_that_is_no_member_proves_nothing() -> None:
    log = Log(0)
    log.commits({A: [0, 1, 2, 3], D: [0]})
    assert "no member" in audit([log.records], stages=1, expected={1: range(4)}).problems[0]


def test_journals_that_begin_and_end_at_different_records_make_one_chain() -> None:
    records = two_steps().records
    merged, problems = merge_journals([records[:2], records[1:]])
    assert merged == records
    assert problems == []


def test_a_record_that_no_node_kept_is_a_problem() -> None:
    records = two_steps().records
    _, problems = merge_journals([records[:1], records[2:]])
    assert problems == ["no node kept the records 1 to 1"]


def test_two_nodes_with_different_records_disagree() -> None:
    records = two_steps().records
    other = dataclasses.replace(records[-1], loss=2.0)
    _, problems = merge_journals([records, [*records[:-1], other]])
    assert problems == ["nodes disagree about record 2"]


def test_a_record_that_follows_from_another_history_is_a_problem() -> None:
    records: list[Record] = two_steps().records
    records[1] = dataclasses.replace(records[1], loss=2.0)
    _, problems = merge_journals([records])
    assert problems == ["record 2 does not follow from the one before it"]


def test_what_one_peer_has_in_committed_steps_is_counted_by_step() -> None:
    records = two_steps().records
    assert counted_by(records, B) == {1: 2}
    assert counted_by(records, C) == {1: 3, 2: 2}


def resumed(log: Log, *, after: int, step: int) -> Record:
    """The record with which a new epoch goes on from a step, made of the log's record `after`."""
    before = log.records[after]
    return dataclasses.replace(
        Record(index=0, step=step, lead=A, members=before.members),
        index=before.index + 1024,
        epoch=before.epoch + 1,
        previous=before.digest(),
    )


def test_steps_that_a_later_epoch_went_back_behind_are_made_again_and_counted_once() -> None:
    log = two_steps()
    log.records.append(resumed(log, after=2, step=1))
    log.commits({A: [0, 1, 2, 3], C: [0, 1], D: [2, 3]})
    accounts = audit([log.records], stages=2, expected=EXPECTED)
    assert (accounts.missing, accounts.repeated, accounts.problems) == (0, 0, ())


def test_a_step_that_is_not_made_again_is_missing() -> None:
    log = two_steps()
    log.records.append(resumed(log, after=2, step=1))
    assert audit([log.records], stages=2, expected=EXPECTED).missing == 8


def test_what_was_decided_behind_the_back_of_the_next_epoch_is_no_history() -> None:
    """One node knew of step 2 and did not come back: the others went on from what they knew, which was step 1."""
    log = two_steps()
    overtaken = log.records[2]
    begun = resumed(log, after=1, step=1)
    log.records = [*log.records[:2], begun]
    log.commits({A: [0, 1], B: [2, 3], C: [0, 1, 2, 3]})
    journals = [log.records, [overtaken]]
    accounts = audit(journals, stages=2, expected=EXPECTED)
    assert (accounts.missing, accounts.repeated, accounts.problems) == (0, 0, ())


def test_an_epoch_that_names_no_known_record_is_a_problem() -> None:
    log = two_steps()
    begun = dataclasses.replace(resumed(log, after=2, step=1), previous=bytes(32))
    problems = audit([[*log.records, begun]], stages=2, expected=EXPECTED).problems
    assert "does not follow" in problems[0]
