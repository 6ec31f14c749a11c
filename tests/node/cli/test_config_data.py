"""`murmura config data` prints a section that a run file can use as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from node.cli.commands.config import command
from protocols.run import TextSpec
from protocols.schema import decode
from swarm.data.text import read_run_text


def test_the_printed_section_names_the_text_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    result = CliRunner().invoke(command, ["data", f"{tmp_path}/*.txt"])
    assert result.exit_code == 0
    spec = decode(TextSpec, tomllib.loads(result.output)["data"])
    assert b"some text" in read_run_text(spec).data


def test_a_relative_path_is_printed_as_a_service_will_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["data", "a.txt"])
    assert tomllib.loads(result.output)["data"]["pattern"] == str(tmp_path / "a.txt")


@pytest.mark.parametrize("pattern", ["", "empty"])
def test_what_is_no_text_is_not_blessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    (tmp_path / "empty").write_text("")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["data", pattern])
    assert result.exit_code != 0
    assert "sha256" not in result.output
