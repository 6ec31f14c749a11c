"""Names that come from run files and peers reach no terminal raw."""

from __future__ import annotations

import copy
import io
import logging
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from node import logs
from node.cli.commands.config import command
from node.cli.entry import show_error
from node.cli.render import status_lines
from node.errors import NodeError
from protocols.shown import shown, shown_all, shown_lines
from tests.node.cli.samples import STATUS

EVIL = "a\x07b\x1b[31mc\u202egpj.exe\r\n"
RAW = ("\x07", "\x1b", "\u202e", "\r")


def clean(text: str) -> bool:
    return not any(raw in text for raw in RAW)


def test_what_would_not_be_seen_as_it_is_is_spelled_out() -> None:
    assert shown(EVIL) == "a\\x07b\\x1b[31mc\\u202egpj.exe\\r\\n"
    assert shown("Größe, 大きさ") == "Größe, 大きさ"
    assert shown_lines("one\n  two\x07") == "one\n  two\\x07"
    assert shown_all({EVIL: [EVIL, 3, None]}) == {shown(EVIL): [shown(EVIL), 3, None]}


def test_a_status_shows_names_and_never_obeys_them() -> None:
    report = copy.deepcopy(STATUS)
    report["run"]["name"] = EVIL
    report["life"]["reason"] = EVIL
    report["unhealthy_reasons"] = [EVIL]
    assert all(clean(line) for line in status_lines(report))


def test_errors_and_logs_show_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(NodeError(f"no {EVIL}", f"try {EVIL}"), as_json=True)
    captured = capsys.readouterr()
    assert clean(captured.out + captured.err)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.TextFormatter())
    handler.emit(logging.LogRecord("n", logging.INFO, "f", 1, "peer said %s", (EVIL,), None))
    assert clean(stream.getvalue())


def test_a_pattern_is_printed_as_toml_that_means_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'a"b\\c\u202ed'
    (tmp_path / name).write_text("some text")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["data", name])
    assert clean(result.output)
    assert tomllib.loads(result.output)["data"]["pattern"] == str(tmp_path / name)
