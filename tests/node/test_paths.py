"""The node's folders: made private, and refused with a cure when they cannot be used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from node.errors import ConfigError, PermissionRefusedError
from node.paths import SOCKET_PATH_BYTES_MAX, Paths, make_private_dir


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_made_for_their_owner_only(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "run")
    paths.prepare()
    assert mode_of(paths.state_dir) == mode_of(paths.runtime_dir) == 0o700


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    make_private_dir(folder)
    assert mode_of(folder) == 0o700


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="is a file where a folder is needed"):
        make_private_dir(tmp_path / "state")


def test_a_folder_that_cannot_be_made_says_how_to_choose_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionRefusedError, match="--state-dir"):
        make_private_dir(tmp_path / "file" / "state")


def test_a_folder_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root, in a container, may write everywhere
    with pytest.raises(PermissionRefusedError, match="cannot write in"):
        make_private_dir(tmp_path)


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(PermissionRefusedError, match="belongs to another user"):
        make_private_dir(tmp_path)


def test_a_socket_path_the_kernel_would_refuse_is_found_before_anything_starts(
    tmp_path: Path,
) -> None:
    paths = Paths(tmp_path, tmp_path / ("x" * SOCKET_PATH_BYTES_MAX))
    with pytest.raises(ConfigError, match="--runtime-dir"):
        paths.prepare()


def test_a_folder_that_others_write_in_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(PermissionRefusedError, match="written by other users"):
        make_private_dir(shared)
    assert shared.stat().st_mode & 0o7777 == 0o1777
