"""What it costs a node to be looked at: `python -m benchmarks.observe --json`. About eight minutes.

- One node is a whole run and trains flat out, with its port open; windows in which somebody looks (a scrape a second and
  two open pages) alternate with windows in which nobody does. Their microbatches say what is kept, the median of ten pairs.
- Two nodes idle, one with a port and one without: memory; and the processor time that looking adds, in seconds a second.
  On a node that trains it would be lost in the noise of training.
- The page in a browser, `murmura status`, and what is in deploy/.

Exit 1 when a bound is broken, or could not be measured.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.observe.artefacts import exposure_cpu_unit, manifests_valid
from benchmarks.observe.browser import page_first_paint_ms
from benchmarks.observe.onlookers import ANSWER_S, Onlookers, get
from benchmarks.workers import cpu_seconds_of, processor
from node.local import MURMURA, LocalNode, stop_all
from swarm.data.text import read_text

AT_MOST: Final[dict[str, float]] = {
    "observe_cpu_share": 0.01,
    "scrape_ms_p99": 20.0,
    "page_first_paint_ms": 500.0,
    "page_bytes": 300_000,
    "status_seconds": 0.3,
    "memory_added_mb": 25.0,
    "exposure_cpu_unit": 2.5,
}
AT_LEAST: Final[dict[str, float]] = {"throughput_kept": 0.95, "manifests_valid": 1}
PAIRS: Final = 10
WINDOW_S: Final = 15.0
IDLE_PAIRS: Final = 3
IDLE_WINDOW_S: Final = 15.0
WARM_S: Final = 10.0
JOIN_S: Final = 120.0
ASKED: Final = 11

RUN_TOML: Final = """
name = "observed"
[data]
pattern = "{stdlib}/**/*.py"
sha256 = "{sha256}"
[model]
layers = 3
width = 256
[pipeline]
stages = 1
microbatches = 16
[training]
steps = 1000000
evaluate_every = 0
"""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (it always does).")
def main(*, as_json: bool) -> None:
    """Measure, print, and exit 1 when a bound is broken."""
    # A short path: a unix socket's has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="murmura-") as name:
        folder = Path(name)
        result = _training(folder) | _idle(folder)
    result |= {"exposure_cpu_unit": exposure_cpu_unit(), "manifests_valid": manifests_valid()}
    broken = [
        f"{key} is {result[key]}, not at most {bound}"
        for key, bound in AT_MOST.items()
        if result[key] is None or result[key] > bound
    ]
    broken += [
        f"{key} is {result[key]}, not at least {bound}"
        for key, bound in AT_LEAST.items()
        if result[key] is None or result[key] < bound
    ]
    print(json.dumps(result | {"ok": not broken, **processor()}))
    for line in broken:
        _say(line)
    sys.exit(1 if broken else 0)


def _training(folder: Path) -> dict[str, Any]:
    """Let one node be the whole pipeline, so that its compute thread never waits for anybody."""
    kept, scrapes = [], []
    with _node(folder, "training", "--http-listen", "0") as node:
        port = _port(node)
        _counted(node)
        time.sleep(WARM_S)
        for number in range(PAIRS):
            alone = _rate(node)
            with Onlookers(port) as onlookers:
                watched = _rate(node)
            kept.append(watched / alone)
            scrapes += onlookers.scrape_ms
            _say(f"pair {number + 1}: {alone:.1f} and {watched:.1f} microbatches a second")
        node.stop()
    scrapes.sort()
    return {
        "throughput_kept": round(statistics.median(kept), 4),
        "throughput_kept_of_pairs": [round(each, 4) for each in kept],
        "scrape_ms_p50": round(statistics.median(scrapes), 2),
        "scrape_ms_p99": round(scrapes[int(0.99 * (len(scrapes) - 1))], 2),
        "scrapes": len(scrapes),
    }


def _idle(folder: Path) -> dict[str, Any]:
    """Look at a node that waits, beside one that nobody can look at."""
    with (
        _node(folder, "plain", "--no-train") as plain,
        _node(folder, "shown", "--no-train", "--http-listen", "0") as shown,
    ):
        for node in (plain, shown):
            node.wait_until(lambda status: status["life"]["state"] == "serving", JOIN_S)
        port = _port(shown)
        added = []
        time.sleep(WARM_S)
        for _ in range(IDLE_PAIRS):
            alone = _cpu_share(shown)
            with Onlookers(port):
                added.append(_cpu_share(shown) - alone)
        _say(f"looking adds, in seconds a second: {', '.join(f'{each:.4f}' for each in added)}")
        state_dir = str(shown.paths.state_dir)
        seconds = [_status_seconds(state_dir) for _ in range(ASKED)]
        memory = {node: _pss_bytes(node.process.pid) for node in (plain, shown)}
        result = {
            "observe_cpu_share": round(statistics.median(added), 4),
            "memory_added_mb": round((memory[shown] - memory[plain]) / 1e6, 1),
            "status_seconds": round(statistics.median(seconds), 3),
            "page_bytes": _page_bytes(port),
            "page_first_paint_ms": page_first_paint_ms(port),
        }
        stop_all([plain, shown])
    return result


def _node(folder: Path, name: str, *flags: str) -> LocalNode:
    """Begin a run of its own, over a text that is there on every machine."""
    text = read_text("{stdlib}/**/*.py", bytes_max=16 * 1024 * 1024)
    run = folder / "run.toml"
    run.write_text(RUN_TOML.replace("{sha256}", text.sha256))
    node = LocalNode(folder / name, "--run", str(run), "--new-swarm", *flags)
    node.wait_ready()
    return node


def _port(node: LocalNode) -> int:
    address: str = node.ask("status")["network"]["http"]["address"]
    return int(address.rpartition(":")[2])


def _counted(node: LocalNode) -> int:
    """Return the microbatches that the node has counted, once it counts any."""
    status = node.wait_until(
        lambda status: status["services"].get("pipeline", {}).get("microbatches_counted"), JOIN_S
    )
    return int(status["services"]["pipeline"]["microbatches_counted"])


def _rate(node: LocalNode) -> float:
    """Return the microbatches a second over one window."""
    before, began_s = _counted(node), time.monotonic()
    time.sleep(WINDOW_S)
    return (_counted(node) - before) / (time.monotonic() - began_s)


def _cpu_share(node: LocalNode) -> float:
    """Return the daemon's processor seconds a second over one window."""
    before_s, began_s = cpu_seconds_of(node.process.pid), time.monotonic()
    time.sleep(IDLE_WINDOW_S)
    return (cpu_seconds_of(node.process.pid) - before_s) / (time.monotonic() - began_s)


def _status_seconds(state_dir: str) -> float:
    began_s = time.monotonic()
    done = subprocess.run(
        [*MURMURA, "status", "--state-dir", state_dir], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode not in (0, 4):  # 4: it answered, and something is not as it should be
        raise click.ClickException(f"murmura status ended with code {done.returncode}")
    return time.monotonic() - began_s


def _page_bytes(port: int) -> int:
    """Return the size of all that the page loads, the first answers of the node included."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    paths = ("/", "/page.css", "/page.js", "/api/status", "/api/history")
    return sum(len(get(connection, path)) for path in paths)


def _pss_bytes(pid: int) -> int:
    """Memory of a process, pages it shares with others counted in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise click.ClickException(f"the kernel does not say the memory of process {pid}")


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
