"""Who counted which microbatch, from the records the members decided. Pure: the demo's proof of "exactly once".

Rules of this file:
  - A record's tallies are of the members that the record *before* it names; which stage a member hosts is written there.
  - The journals of all nodes together are one chain, each record naming the digest of the one before. Nodes that
    disagree about a record, or a chain with a hole, prove nothing and are reported.
  - After a loss of power an epoch begins with a record that names the last one of the old epoch that counts. What was decided
    after that, and the steps beyond the one from which the run goes on, are no part of the history any more.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocols.ids import PeerID
from protocols.ledger.view import Record, View, ids_of, unpack_ids

Slot = tuple[int, int, int]
"""(stage, step, microbatch); steps count from 1, as records do."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """What the commit records say, against what should have been counted."""

    expected: int
    missing: int
    repeated: int
    """Counted again, or not part of the step at all."""
    problems: tuple[str, ...]
    """Why the records prove nothing; empty when they are one unbroken chain."""


def merge_journals(journals: Iterable[Iterable[Record]]) -> tuple[list[Record], list[str]]:
    """Return all records that any node kept, by epoch and index, and where nodes disagree or the chain is broken."""
    by_place: dict[tuple[int, int], Record] = {}
    problems: list[str] = []
    for journal in journals:
        for record in journal:
            known = by_place.setdefault((record.epoch, record.index), record)
            if known.digest() != record.digest():
                problems.append(f"nodes disagree about record {record.index}")
    records = _without_overtaken([by_place[place] for place in sorted(by_place)])
    for before, record in itertools.pairwise(records):
        if record.epoch == before.epoch and record.index != before.index + 1:
            problems.append(f"no node kept the records {before.index + 1} to {record.index - 1}")
        elif record.previous != before.digest():
            problems.append(f"record {record.index} does not follow from the one before it")
    return records, problems


def _without_overtaken(records: Sequence[Record]) -> list[Record]:
    """Leave out what an epoch had decided after the record from which the next one begins."""
    kept: list[Record] = []
    for record in records:
        if kept and kept[-1].epoch != record.epoch:
            named = (i for i, before in enumerate(kept) if before.digest() == record.previous)
            kept = kept[: next(named, len(kept)) + 1]
        kept.append(record)
    return kept


def final_history(records: Sequence[Record]) -> list[Record]:
    """Return the records that commit the steps of which the final model is made: none that a later epoch went back behind."""
    final: list[Record] = []
    for before, record in itertools.pairwise(records):
        if record.epoch != before.epoch:
            final = [committed for committed in final if committed.step <= record.step]
        if record.commits_step:
            final.append(record)
    return final


def audit(
    journals: Iterable[Iterable[Record]], *, stages: int, expected: Mapping[int, Iterable[int]]
) -> Accounts:
    """Compare what was counted with what should have been.

    Args:
      expected: step -> the microbatches that one process trained on in it.
    """
    records, problems = merge_journals(journals)
    counted: Counter[Slot] = Counter()
    views = {record.digest(): View(record.members) for record in records}
    for record in final_history(records):
        counted += _slots(record, views.get(record.previous, View(())), problems)
    wanted = {
        (stage, step, microbatch)
        for stage in range(stages)
        for step, microbatches in expected.items()
        for microbatch in microbatches
    }
    return Accounts(
        expected=len(wanted),
        missing=len(wanted - counted.keys()),
        repeated=sum(
            times - 1 if slot in wanted else times for slot, times in sorted(counted.items())
        ),
        problems=tuple(problems),
    )


def _slots(record: Record, view: View, problems: list[str]) -> Counter[Slot]:
    slots: Counter[Slot] = Counter()
    for tally in record.tallies:
        member = view.find(tally.peer)
        if member is None:
            problems.append(f"step {record.step} counts the work of {tally.peer}, who is no member")
            continue
        slots.update(
            (member.stage, record.step, microbatch)
            for microbatch in ids_of(unpack_ids(tally.counted))
        )
    return slots


def counted_by(records: Sequence[Record], peer: PeerID) -> dict[int, int]:
    """Return step -> microbatches that were counted by this peer, for the steps where it counted any."""
    return {
        record.step: len(ids_of(unpack_ids(tally.counted)))
        for record in records
        if record.commits_step
        for tally in record.tallies
        if tally.peer == peer and unpack_ids(tally.counted)
    }
