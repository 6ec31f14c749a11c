"""What must hold of all that the nodes of a swarm have written down, the dead ones too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from protocols.ledger.view import Record, View, coverage_problem

States = Mapping[tuple[int, int], Iterable[str]]
"""(stage, step) -> hashes of the parameters that a node had there."""


def check_counted_once(records: Sequence[Record], *, microbatches: int, stages: int) -> int:
    """Check every step whose record and the one before it are known; return how many there were."""
    checked = 0
    by_index = {record.index: record for record in records}
    for record in records:
        before = by_index.get(record.index - 1)
        if not record.commits_step or before is None:
            continue
        problem = coverage_problem(
            record, View(before.members), microbatches=microbatches, stages=stages
        )
        assert problem is None, f"step {record.step}: {problem}"
        checked += 1
    return checked


def one_history(journals: Mapping[str, Iterable[Record]]) -> list[Record]:
    """Check that all journals tell of one history, each record of which follows from the one before; return it."""
    history: dict[int, Record] = {}
    for name, records in journals.items():
        for record in records:
            known = history.setdefault(record.index, record)
            assert known == record, f"{name} has another record {record.index}"
    ordered = [history[index] for index in sorted(history)]
    for before, record in pairwise(ordered):
        if before.index + 1 == record.index:
            assert record.previous == before.digest(), f"record {record.index} follows another one"
    return ordered


def check_same_states(states: Iterable[States]) -> None:
    """Check that whoever had applied a step at a stage had the same parameters."""
    seen: dict[tuple[int, int], set[str]] = {}
    for of_one in states:
        for at, hashes in of_one.items():
            seen.setdefault(at, set()).update(hashes)
    differing = {at: hashes for at, hashes in seen.items() if len(hashes) != 1}
    assert not differing, f"(stage, step) with more than one state: {differing}"
