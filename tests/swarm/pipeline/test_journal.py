"""The journal of records: whatever happens while one is written, the others can be read."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocols.ids import PeerID
from protocols.ledger.view import Member, Record
from swarm.pipeline.journal import Journal, read_journal

PEER = PeerID(b"\x00\x24\x08\x01\x12\x20" + bytes(32))


def record(index: int) -> Record:
    member = Member(peer=PEER, incarnation=1, stage=0, since=0)
    return Record(index=index, step=index, lead=PEER, members=(member,))


def test_what_a_crash_cut_off_hides_nothing_that_comes_after_it(tmp_path: Path) -> None:
    path = tmp_path / "records.msgpack"
    first = Journal(path)
    first.append(record(1))
    first.append(record(2))
    path.write_bytes(path.read_bytes()[:-3])
    Journal(path).append(record(3))
    assert list(read_journal(path)) == [record(1), record(3)]


def test_what_is_put_aside_is_not_read_any_more_and_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "records.msgpack"
    journal = Journal(path)
    journal.append(record(1))
    journal.put_aside()
    assert list(read_journal(path)) == []
    journal.append(record(2))
    assert list(read_journal(path)) == [record(2)]
    assert list(read_journal(tmp_path / "records.msgpack.given-up")) == [record(1)]


def test_a_file_that_was_never_a_journal_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "records.msgpack"
    path.write_bytes(b"\xc1" * 100)
    Journal(path).append(record(1))
    assert list(read_journal(path)) == [record(1)]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "records.msgpack"
    journal = Journal(path)
    journal.append(record(1))
    # The kernel takes the part of a write that fits, as it does when a disk fills up.
    with files_no_larger_than(path.stat().st_size + 10), pytest.raises(OSError, match="space"):
        journal.append(record(2))
    journal.append(record(3))
    assert list(read_journal(path)) == [record(1), record(3)]


def test_the_older_half_goes_when_there_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "records.msgpack"
    journal = Journal(path, bytes_max=1000)
    for index in range(100):
        journal.append(record(index))
    kept = list(read_journal(path))
    assert kept == [record(index) for index in range(kept[0].index, 100)]
    assert sum(part.stat().st_size for part in tmp_path.iterdir()) < 1500
