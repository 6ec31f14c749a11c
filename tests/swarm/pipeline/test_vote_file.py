"""A vote that cannot be read is refused with a reason, and never taken for none."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from protocols.ids import RunID
from protocols.ledger.restart import Vote
from protocols.ledger.view import Ballot
from swarm.pipeline.vote_file import Kept, read_vote, write_vote
from swarm.state.sealed import FileRefusedError
from tests.protocols.ledger.swarm import peer_ids

RUN = RunID(b"a" * 32)
KEPT = Kept(incarnation=7, vote=Vote(epoch=2, promised=Ballot(3, peer_ids(1)[0])))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "vote.msgpack"
    assert write_vote(found, RUN, KEPT)
    return found


def test_what_was_written_is_read(path: Path) -> None:
    assert read_vote(path, RUN) == KEPT


def test_no_file_is_no_vote(tmp_path: Path) -> None:
    assert read_vote(tmp_path / "vote.msgpack", RUN) == Kept()


def changed(path: Path, **fields: object) -> None:
    path.write_bytes(msgpack.packb(msgpack.unpackb(path.read_bytes()) | fields))


def test_a_torn_file_is_refused_wherever_it_ends(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileRefusedError):
            read_vote(path, RUN)


def test_a_file_with_any_byte_changed_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(FileRefusedError):
            read_vote(path, RUN)


def test_a_vote_of_another_run_is_refused(path: Path) -> None:
    with pytest.raises(FileRefusedError, match="of another run"):
        read_vote(path, RunID(b"b" * 32))


def test_a_newer_format_is_refused_and_said_to_be_newer(path: Path) -> None:
    changed(path, format=2, secret=b"of the future")
    with pytest.raises(FileRefusedError, match="a newer one has written it"):
        read_vote(path, RUN)


def test_a_body_that_is_no_vote_is_refused(path: Path) -> None:
    changed(path, body=b"\x80\x81")
    with pytest.raises(FileRefusedError, match="another hash"):
        read_vote(path, RUN)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vote.msgpack"
    folder.mkdir()
    with pytest.raises(FileRefusedError, match="cannot be read"):
        read_vote(folder, RUN)


def test_a_huge_file_is_not_read_at_all(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(17 * 1024 * 1024)
    with pytest.raises(FileRefusedError, match="larger than any"):
        read_vote(path, RUN)


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert not write_vote(tmp_path / "gone" / "vote.msgpack", RUN, KEPT)
