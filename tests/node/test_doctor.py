"""`murmura doctor`: everything that could be in the way, and nothing is changed by looking."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.config import load
from node.doctor import examine
from node.errors import UnavailableError
from node.finding import Finding
from node.reachability import second_time
from tests.node.cli.samples import STATUS
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


def test_a_port_for_http_that_is_taken_is_found_with_everything_else(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = findings(
            tmp_path,
            run=str(write_run(tmp_path, text_sha256="0" * 64)),
            http_listen=str(port),
        )
    assert not found["http_listen"].ok
    assert "--http-listen" in found["http_listen"].hint
    assert not found["data"].ok  # both at once
    assert found["versions"].ok
    assert "torch" in found["versions"].detail


def test_room_for_checkpoints_is_compared_with_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(tmp_path)["disk room"].ok
    monkeypatch.setattr(
        "node.doctor.shutil.disk_usage", lambda path: SimpleNamespace(free=100 << 20)
    )
    full = findings(tmp_path)["disk room"]
    assert not full.ok
    assert full.detail == "100 MB are free"


def status_of_running(**network: Any) -> dict[str, Any]:
    status = copy.deepcopy(STATUS)
    status["network"] |= network
    return status


def test_a_node_that_runs_here_is_asked_and_its_own_port_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "node.doctor.running_node", lambda paths: status_of_running(clock_skew_seconds=-70.0)
    )
    found = list(
        examine(load({"state_dir": str(tmp_path / "n"), "listen": LISTEN}, environ={"HOME": "/x"}))
    )
    problems = {(item.name, item.detail) for item in found if not item.ok}
    assert ("daemon", "isolated: no peer for 31 s; see services.joining.dialled") in problems
    assert ("clock", "-70.0 s against peers") in problems
    assert not any(item.name.startswith("listen") for item in found)


def test_peers_are_asked_until_one_answers_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def status_of(address: str, *, invite: str | None) -> dict[str, Any]:
        asked.append(address)
        if len(asked) == 1:
            raise UnavailableError("nobody answers")
        return {"software": "0.0.9", "clock_skew_seconds": 0.2}

    monkeypatch.setattr("node.reachability.status_of", status_of)
    found = list(second_time(["/a", "/b", "/c"], invite=None, compare_clock=True))
    assert asked == ["/a", "/b"]
    assert [(item.name, item.ok) for item in found] == [
        ("reached a second time", True),
        ("version of peers", False),
        ("clock", True),
    ]
    asked.clear()
    (nobody,) = second_time(["/a"], invite=None, compare_clock=True)
    assert (nobody.name, nobody.ok, nobody.detail) == (
        "reached a second time",
        False,
        "nobody answers",
    )
