"""Small files are replaced whole, and a lock has one holder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from node.errors import BusyError, PermissionRefusedError
from node.files import exclusive, write_atomically


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermissionRefusedError, match="gone/key"):
        write_atomically(tmp_path / "gone" / "key", b"")


def test_a_second_daemon_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock"),
        pytest.raises(BusyError, match=r"process \d+\) uses .* --state-dir|process \d+") as caught,
        exclusive(tmp_path / "lock"),
    ):
        pass
    assert caught.value.retryable


def test_a_lock_is_free_again_once_its_holder_is_done(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "lock"):
            pass
