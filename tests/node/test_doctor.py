"""`murmura doctor`: everything that could be in the way, and nothing is changed by looking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.config import load
from node.doctor import Finding, examine
from tests.node.runs import sha256_of_text, write_right_run, write_run

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def findings(folder: Path, **flags: Any) -> dict[str, Finding]:
    flags = {"state_dir": str(folder / "node"), "listen": LISTEN, **flags}
    return {found.name: found for found in examine(load(flags, environ={"HOME": str(folder)}))}


def test_the_runs_text_is_looked_at(tmp_path: Path) -> None:
    found = findings(tmp_path, run=str(write_right_run(tmp_path)))
    assert found["run"].ok
    assert found["data"].ok


def test_another_text_is_a_problem_that_names_both_hashes(tmp_path: Path) -> None:
    found = findings(tmp_path, run=str(write_run(tmp_path, text_sha256="0" * 64)))["data"]
    assert not found.ok
    assert "0" * 64 in found.detail
    assert sha256_of_text(tmp_path) in found.detail


def test_a_text_that_is_not_here_is_a_problem(tmp_path: Path) -> None:
    run_file = str(write_right_run(tmp_path))
    found = findings(tmp_path, run=run_file, data=str(tmp_path / "nowhere"))["data"]
    assert not found.ok
    assert "nowhere" in found.detail


def test_a_stage_that_the_run_does_not_have_is_a_problem(tmp_path: Path) -> None:
    found = findings(tmp_path, run=str(write_right_run(tmp_path)), stage=3)["run"]
    assert not found.ok
    assert "stage must be 0 to 2" in found.detail


def test_it_makes_no_identity(tmp_path: Path) -> None:
    found = findings(tmp_path, run=str(write_right_run(tmp_path)))
    assert found["identity"].ok
    assert not (tmp_path / "node" / "identity.key").exists()
