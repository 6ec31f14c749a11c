"""Files as editors leave them, and a machine that has run out of something: one true sentence, the right exit code."""

from __future__ import annotations

import codecs
import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node import exit_codes
from node.config import load
from node.doctor import examine
from node.errors import BusyError, ConfigError, NodeError, PermissionRefusedError, file_error
from node.files import read_toml, write_atomically
from node.identity import Identity
from node.runfile import read_run_file
from tests.node.nodes import RUN_TOML

SETTINGS = 'log_level = "debug"\nnice = 3\n'


@pytest.mark.parametrize(
    "raw",
    [
        codecs.BOM_UTF8 + SETTINGS.encode(),
        SETTINGS.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF16_LE + SETTINGS.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + SETTINGS.replace("\n", "\r\n").encode("utf-16-be"),
        (SETTINGS.replace("\n", "  \t\n") + "\n  \n\n").encode(),
    ],
)
def test_settings_and_run_files_are_read_as_any_editor_leaves_them(
    tmp_path: Path, raw: bytes
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(raw)
    config = load(environ={"HOME": str(tmp_path)}, config_file=path).config
    assert (config.log_level, config.nice) == ("debug", 3)
    run = tmp_path / "run.toml"
    run.write_bytes(codecs.BOM_UTF16_LE + RUN_TOML.replace("\n", "\r\n").encode("utf-16-le"))
    assert read_run_file(run).name == "try"


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"\x80abc", b"a = \x00", b"a"])
def test_what_is_no_text_is_said_to_be_no_toml(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_toml(path, "the run file", bytes_max=100)


def test_a_file_that_is_none_is_named_as_what_it_is(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=says):
            read_toml(path, "the run file", bytes_max=100)
    (tmp_path / "large").write_bytes(b"#" * 101)
    with pytest.raises(ConfigError, match="at most 100 bytes"):
        read_toml(tmp_path / "large", "the run file", bytes_max=100)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, BusyError, exit_codes.TRY_AGAIN),
        (errno.EMFILE, BusyError, exit_codes.TRY_AGAIN),
        (errno.ENOMEM, BusyError, exit_codes.TRY_AGAIN),
        (errno.EAGAIN, BusyError, exit_codes.TRY_AGAIN),
        (errno.EROFS, PermissionRefusedError, exit_codes.NO_PERMISSION),
        (errno.EACCES, PermissionRefusedError, exit_codes.NO_PERMISSION),
        (errno.ENOENT, PermissionRefusedError, exit_codes.NO_PERMISSION),
    ],
)
def test_what_the_kernel_says_has_the_exit_code_that_fits(
    number: int, kind: type[NodeError], code: int
) -> None:
    error = file_error(OSError(number, os.strerror(number)), "cannot write /x")
    assert type(error) is kind
    assert error.exit_code == code
    assert error.reason == f"cannot write /x: {os.strerror(number)}"


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "peers"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BusyError, match="No space left"):
        write_atomically(path, b"new")
    with pytest.raises(BusyError, match="No space left"):
        Identity.create(tmp_path / "identity.key")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["peers"]


def test_doctor_tries_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> dict[str, bool]:
        flags = {"state_dir": str(tmp_path / "node"), "listen": ("/ip4/127.0.0.1/tcp/0",)}
        return {found.name: found.ok for found in examine(load(flags, environ={}))}

    found = look()
    assert (found["disk"], found["processes"], found["network"]) == (True, True, True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert not look()["disk"]
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", full)
        assert not look()["processes"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", full)
        assert not look()["open files"]
