"""Calls of remote experts, beside hivemind's Server and RemoteExpert: `python -m benchmarks.expert_rpc --json`.

A server and two clients, each a process with a p2pd of its own, on both sides; all are up, one side works at a time, and they
take turns. Calls come from threads that wait for their answer. Medians of the repetitions; exit 1 when a bound is broken.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.workers import Worker, processor

CASES: Final = {
    # name: (expert, calls of each client, in flight of each client)
    "small_1": ("small", 400, 1),
    "small_8": ("small", 1600, 8),
    "bulk": ("bulk", 30, 1),
    "ffn": ("ffn", 6, 1),
}
BOUNDS: Final = {
    "ratio_small_1": 2.5,
    "ratio_small_8": 3.0,
    "ratio_bulk": 1.8,
    "share_of_local": 0.85,
}
"""At least."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn of one side: both clients at once."""

    calls_per_s: float
    each_s: Sequence[float]


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
@click.option("--repetitions", default=5, show_default=True, help="Turns of each side.")
@click.option("--threads", default=1, show_default=True, help="Of torch, in each process.")
def main(as_json: bool, repetitions: int, threads: int) -> None:
    with ExitStack() as stack:
        server, ours = _start_ours(stack, threads)
        theirs = _start_hivemind(stack, threads)
        result: dict[str, Any] = processor() | {"repetitions": repetitions, "threads": threads}
        for case in CASES:
            result |= _compare(case, ours, theirs, repetitions)
        result |= _share_of_local(server, result, repetitions)
    broken = [key for key, least in BOUNDS.items() if not result[key] >= least]
    for key in broken:
        _say(f"BOUND BROKEN: {key} is {result[key]}, at least {BOUNDS[key]} was expected")
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(1 if broken else 0)


def _start_ours(stack: ExitStack, threads: int) -> tuple[Worker, list[Worker]]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mu")))
    workers = []
    for name in ("server", "a", "b"):
        (folder / name).mkdir()
        module = "benchmarks.expert_rpc_ours"
        workers.append(stack.enter_context(Worker(module, str(folder / name), str(threads))))
    server, *clients = workers
    for client in clients:
        client.ask(do="connect", **server.hello)
    return server, clients


def _start_hivemind(stack: ExitStack, threads: int) -> list[Worker]:
    # Its other strategy needs a helper process of torch, which not every machine lets it start.
    os.environ.setdefault("HIVEMIND_MEMORY_SHARING_STRATEGY", "file_descriptor")
    module = "benchmarks.expert_rpc_hivemind"
    server = stack.enter_context(Worker(module, "serve", str(threads)))
    where = server.hello["address"], server.hello["peer"]
    return [stack.enter_context(Worker(module, "ask", *where)) for _ in range(2)]


def _compare(
    case: str, ours: Sequence[Worker], theirs: Sequence[Worker], repetitions: int
) -> dict[str, Any]:
    found: dict[str, list[Measured]] = {"": [], "hivemind_": []}
    sides = [("", ours), ("hivemind_", theirs)]
    for _, clients in sides:
        _measure(case, clients, share=0.2)  # warm: streams open, pools started
    for repetition in range(repetitions):
        for name, clients in sides if repetition % 2 == 0 else reversed(sides):
            found[name].append(_measure(case, clients, share=1.0))
    result: dict[str, Any] = {}
    for name, turns in found.items():
        cuts = statistics.quantiles([s for turn in turns for s in turn.each_s], n=100)
        rate = statistics.median(turn.calls_per_s for turn in turns)
        result[f"{name}{case}_calls_per_s"] = round(rate, 2)
        result[f"{name}{case}_p50_ms"] = round(1000 * cuts[49], 3)
        result[f"{name}{case}_p99_ms"] = round(1000 * cuts[98], 3)
    ratio = result[f"{case}_calls_per_s"] / result[f"hivemind_{case}_calls_per_s"]
    result[f"ratio_{case}"] = round(ratio, 3)
    _say(f"{case}: {ratio:.2f} times hivemind's calls per second")
    return result


def _measure(case: str, clients: Sequence[Worker], *, share: float) -> Measured:
    expert, calls, at_once = CASES[case]
    calls = max(at_once, int(calls * share))
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(
            pool.map(
                lambda client: client.ask(do="calls", name=expert, calls=calls, at_once=at_once),
                clients,
            )
        )
    made = sum(len(answer["each_s"]) for answer in answers)
    seconds = max(answer["seconds"] for answer in answers)
    return Measured(made / seconds, [s for answer in answers for s in answer["each_s"]])


def _share_of_local(server: Worker, result: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Compare with the same module on the server's own thread, without a network."""
    calls = CASES["ffn"][1]
    seconds = [
        server.ask(do="local", name="ffn", calls=calls)["seconds"] for _ in range(repetitions)
    ]
    local = calls / statistics.median(seconds)
    return {
        "local_ffn_calls_per_s": round(local, 2),
        "share_of_local": round(result["ffn_calls_per_s"] / local, 3),
        "hivemind_share_of_local": round(result["hivemind_ffn_calls_per_s"] / local, 3),
    }


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
