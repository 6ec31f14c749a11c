"""What a node costs and how quickly it answers: `python -m benchmarks.node --json`.

Starts nodes the way a volunteer does: one alone, six at once; then looks at an idle one of the six for a minute, asks
it, asks it as a stranger, and at last lets one node train flat out. About four minutes. Exit 1 when a bound is broken.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.workers import cpu_seconds_of, processor
from node.identity import Identity
from node.local import MURMURA, LocalNode, stop_all
from swarm.data.text import read_text

BOUNDS: Final[dict[str, float]] = {
    "ready_seconds": 1.5,
    "ready_seconds_of_six": 5.0,
    "status_cpu_seconds": 0.15,
    "status_seconds": 0.3,
    "status_peer_seconds": 2.0,
    "idle_cpu_percent": 0.5,
    "idle_memory_mb": 500.0,
    "loop_lag_p99_ms": 20.0,
}
"""At most."""
NODES: Final = 6
STARTS: Final = 3
ASKED: Final = 11
"""Times each `status` is run; the median counts."""
SETTLE_S: Final = 45.0
"""Between joining and idling: directories greet each other, members look each other up at growing intervals."""
IDLE_S: Final = 60.0
TRAIN_S: Final = 70.0
"""The daemon keeps the lags of the last minute."""
JOIN_S: Final = 120.0

RUN_TOML: Final = """
name = "benchmark"
[data]
pattern = "{pattern}"
sha256 = "{sha256}"
[model]
layers = 3
width = 256
[pipeline]
stages = {stages}
microbatches = 16
[training]
steps = 1000000
evaluate_every = 0
"""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (it always does).")
def main(*, as_json: bool) -> None:
    """Measure, print, and exit 1 when a bound is broken."""
    result: dict[str, Any] = {}
    # A short path: a unix socket's has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="murmura-") as name:
        folder = Path(name)
        result |= _ready_alone(folder)
        result |= _six(folder)
        result |= _training(folder)
    broken = [
        f"{key} is {result.get(key)}, not at most {bound}"
        for key, bound in BOUNDS.items()
        if result.get(key) is None or result[key] > bound
    ]
    result |= {"ok": not broken, **processor()}
    print(json.dumps(result))
    for line in broken:
        _say(line)
    sys.exit(1 if broken else 0)


def _ready_alone(folder: Path) -> dict[str, float]:
    """Start one node after another in a new place each, so that making the identity is in it."""
    run = _run_file(folder, stages=3)
    seconds = []
    for number in range(STARTS):
        with LocalNode(folder / f"alone{number}", "--run", str(run), *IDLE_FLAGS) as node:
            seconds.append(node.wait_ready())
            node.stop()
    _say(f"ready alone: {_listed(seconds)} s")
    return {"ready_seconds": round(statistics.median(seconds), 3)}


def _six(folder: Path) -> dict[str, float]:
    """Start six at once, five of them towards the first's address, which is known beforehand."""
    run = _run_file(folder, stages=3)
    port = _free_port()
    (folder / "six0").mkdir(mode=0o700)
    peer_id = Identity.create(folder / "six0" / "identity.key").peer_id
    address = f"/ip4/127.0.0.1/tcp/{port}"
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                LocalNode(
                    folder / f"six{number}",
                    *("--run", str(run), *IDLE_FLAGS),
                    *(
                        ("--listen", address)
                        if number == 0
                        else ("--bootstrap", f"{address}/p2p/{peer_id}")
                    ),
                )
            )
            for number in range(NODES)
        ]
        ready = [node.wait_ready() for node in nodes]
        _say(f"ready, six at once: {_listed(ready)} s")
        for node in nodes:
            node.wait_until(_is_joined, JOIN_S)
        joined_s = max(time.monotonic() - node.started_s for node in nodes)
        _say(f"all six joined after {joined_s:.1f} s")
        result = {
            "ready_seconds_of_six": round(max(ready), 3),
            "joined_seconds_of_six": round(joined_s, 3),
        }
        time.sleep(SETTLE_S)
        result |= _idle(nodes[3])
        result |= _asked(nodes[3])
        stop_all(nodes)
    return result


def _is_joined(status: dict[str, Any]) -> bool:
    """The node is connected to all the others and does what it has come for."""
    return status["life"]["state"] == "serving" and int(status["network"]["peers"]) == NODES - 1


def _idle(node: LocalNode) -> dict[str, float]:
    """Look at all processes of one node for a minute."""
    family = node.family()
    before_s = sum(map(cpu_seconds_of, family))
    began_s = time.monotonic()
    time.sleep(IDLE_S)
    percent = 100 * (sum(map(cpu_seconds_of, family)) - before_s) / (time.monotonic() - began_s)
    memory_mb = sum(map(_pss_bytes, family)) / 1e6
    _say(f"idle: {percent:.2f} % of a core, {memory_mb:.0f} MB in {len(family)} processes")
    return {"idle_cpu_percent": round(percent, 3), "idle_memory_mb": round(memory_mb, 1)}


def _asked(node: LocalNode) -> dict[str, float]:
    """Run `murmura status` here and as a stranger."""
    state_dir = str(node.paths.state_dir)
    address = node.ask("id")["addresses"][0]
    local = [_timed("status", "--state-dir", state_dir) for _ in range(ASKED)]
    stranger = [_timed("status", "--peer", address) for _ in range(STARTS)]
    _say(f"status: {_listed([wall for wall, _ in local])} s")
    _say(f"status of a stranger: {_listed([wall for wall, _ in stranger])} s")
    return {
        "status_seconds": round(statistics.median(wall for wall, _ in local), 3),
        "status_cpu_seconds": round(statistics.median(cpu for _, cpu in local), 3),
        "status_peer_seconds": round(statistics.median(wall for wall, _ in stranger), 3),
    }


def _timed(*arguments: str) -> tuple[float, float]:
    """Run one command to its end: (seconds, processor seconds of the whole process)."""
    began_s = time.monotonic()
    child = subprocess.Popen([*MURMURA, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began_s
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 4):  # 4: it answered, and something is not as it should be
        raise click.ClickException(f"murmura {arguments[0]} ended with code {child.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime


def _training(folder: Path) -> dict[str, Any]:
    """Let one node be the whole pipeline, so that its compute thread never waits for anybody."""
    run = _run_file(folder, stages=1)
    with LocalNode(folder / "training", "--run", str(run)) as node:
        node.wait_ready()
        before = _step(node.wait_until(lambda status: _step(status) is not None, JOIN_S))
        time.sleep(TRAIN_S)
        status = node.ask("status")
        node.stop()
    steps = (_step(status) or 0) - (before or 0)
    lag = status["resources"]
    _say(
        f"training: {steps} steps in {TRAIN_S:g} s, loop lag p50 {lag['loop_lag_p50_ms']} ms, "
        f"p99 {lag['loop_lag_p99_ms']} ms, max {lag['loop_lag_max_ms']} ms"
    )
    if steps <= 0:
        raise click.ClickException("the node did not train, so its loop lag says nothing")
    return {
        "loop_lag_p50_ms": lag["loop_lag_p50_ms"],
        "loop_lag_p99_ms": lag["loop_lag_p99_ms"],
        "loop_lag_max_ms": lag["loop_lag_max_ms"],
        "training_steps": steps,
    }


def _step(status: dict[str, Any]) -> int | None:
    """The optimizer step a node is at, by whichever service says so."""
    for service in status["services"].values():
        if isinstance(service.get("step"), int):
            return int(service["step"])
    return None


IDLE_FLAGS: Final = ("--no-train",)
"""Stages are hosted and nobody draws microbatches: what a node costs while it waits."""


def _run_file(folder: Path, *, stages: int) -> Path:
    """Write a run over a text that is there on every machine: the standard library's."""
    text = read_text("{stdlib}/**/*.py", bytes_max=16 * 1024 * 1024)
    path = folder / f"run{stages}.toml"
    path.write_text(
        RUN_TOML.replace("{pattern}", "{stdlib}/**/*.py")
        .replace("{sha256}", text.sha256)
        .replace("{stages}", str(stages))
    )
    return path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _pss_bytes(pid: int) -> int:
    """Memory of a process, pages it shares with others counted in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise click.ClickException(f"the kernel does not say the memory of process {pid}")


def _listed(seconds: Sequence[float]) -> str:
    return ", ".join(f"{each:.2f}" for each in seconds)


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
