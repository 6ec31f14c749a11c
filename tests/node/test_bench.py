"""What `murmura bench` measures of a machine, for a run of every mode."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from node.modes import MODES, info_of
from node.runfile import read_run_file
from protocols.run import RunSpec
from swarm.measuring import Measured, rate
from tests.node.processes import murmura
from tests.node.runs import write_right_run

SMALL_TRANSFORMER = """
[model]
layers = 2
width = 16
heads = 2
context = 16
[training]
batch = 4
"""
RUNS = {
    "gossip": 'name = "g"\nmode = "gossip"\n[data]\nkind = "digits"\n[model]\nkind = "mlp"\nlayers = 2\nwidth = 8\n'
    '[optimizer]\nkind = "sgd"\n[training]\nbatch = 16\n',
    "collective": 'name = "c"\nmode = "collective"\n[data]\nkind = "digits"\n[model]\nkind = "mlp"\nlayers = 2\nwidth = 8\n'
    "[training]\nbatch = 16\n",
    "moe": f'name = "m"\nmode = "moe"\n[data]\npattern = "x"\nsha256 = "{"0" * 64}"\n{SMALL_TRANSFORMER}'
    "[moe]\ngrid = [2, 2]\nk = 2\nhidden = 16\n",
}


def run_of(mode: str, folder: Path) -> RunSpec:
    if mode == "pipeline":
        return read_run_file(write_right_run(folder))
    path = folder / "run.toml"
    path.write_text(RUNS[mode])
    return read_run_file(path)


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_measures_what_a_node_would_compute(mode: str, tmp_path: Path) -> None:
    module, _, name = info_of(mode).measure.partition(":")
    measure = getattr(importlib.import_module(module), name)
    found: list[Measured] = list(measure(run_of(mode, tmp_path), "", 0.05))
    assert [item.name for item in found] == {
        "pipeline": ["stage 0", "stage 1", "stage 2"],
        "gossip": ["whole model"],
        "collective": ["whole model"],
        "moe": ["one expert"],
    }[mode]
    assert all(item.value > 0 for item in found)


def test_a_rate_is_calls_a_second_and_at_least_one_is_made() -> None:
    calls = []
    assert rate(lambda: calls.append(1), 0.0) > 0
    assert len(calls) == 3  # two of them warm up


@pytest.mark.process
def test_bench_prints_figures_for_this_run(tmp_path: Path) -> None:
    run = str(write_right_run(tmp_path))
    arguments = ("--seconds", "1", "--threads", "1", "--json", "--state-dir", str(tmp_path / "n"))
    done = murmura("bench", run, *arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["run"], report["mode"], report["threads"]) == ("small", "pipeline", 1)
    assert {item["unit"] for item in report["measured"]} == {"MB/s", "samples/s"}
    assert all(item["value"] > 0 for item in report["measured"])
