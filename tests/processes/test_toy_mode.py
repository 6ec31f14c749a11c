"""Modes are additive: one that nobody in the product knows runs in two real daemons."""

from __future__ import annotations

import inspect
import sys
import time
from pathlib import Path

import pytest

from node.errors import ConfigError
from node.runfile import run_from_plain
from tests.node.processes import PATIENCE_S, Daemon, daemons
from tests.processes import toy_mode

pytestmark = pytest.mark.process

LAUNCHER = (sys.executable, "-P", "-m", "tests.processes.toy_launcher")
RUN = """\
name = "count"
mode = "toy"
[data]
kind = "script"
[training]
steps = 20
[toy]
peers = 2
"""


def test_a_mode_of_somebody_elses_runs_in_two_daemons_to_the_end(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN)
    with daemons() as started:
        first = Daemon(tmp_path / "a", "--run", str(run_file), command=LAUNCHER)
        started.append(first)
        first.wait_ready()
        invite = first.ask("invite")["invite"]
        second = Daemon(tmp_path / "b", "--join", invite, command=LAUNCHER)
        started.append(second)
        second.wait_ready()
        deadline_s = time.monotonic() + PATIENCE_S
        counters: dict[Daemon, int | None] = {}
        while list(counters.values()) != [20, 20] and time.monotonic() < deadline_s:
            for node in started:
                counters[node] = node.ask("status")["services"].get("toy", {}).get("counter")
            time.sleep(0.1)
        status = second.ask("status")
        assert status["services"]["toy"]["counter"] == 20
        assert status["services"]["toy"]["role"] == "counts"
        assert status["run"]["mode"] == "toy"
        assert status["life"]["state"] == "serving"
        assert [node.stop() for node in started] == [0, 0]


def test_it_takes_less_than_a_hundred_lines() -> None:
    assert len(inspect.getsource(toy_mode).splitlines()) < 100


def test_without_its_launcher_the_mode_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="mode: must be one of"):
        run_from_plain({"name": "count", "mode": "toy"}, source="run.toml")
