"""A layer of remote experts, beside hivemind's RemoteMixtureOfExperts: `python -m benchmarks.moe_layer --json`.

64 experts (128 -> 512 -> 128) on four nodes, each a process with its own transport and directory; one client with a layer that
asks 4 of them for each row. A step is forward, backward and a step of the gate, over a batch of 64. Both sides find their
experts in their own DHT. Both sides are up, one works at a time, and they take turns. Then one node of each is stopped (SIGSTOP),
and steps are counted from that moment on, the time to notice included. Exit 1 when a bound is broken.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import click

from benchmarks.workers import Worker, family_of, processor

NODES: Final = 4
BOUNDS: Final = {"ratio_steps": 2.0, "share_of_healthy_steps": 0.7}
"""At least."""


@dataclass(frozen=True, slots=True)
class Side:
    """Four servers and a client."""

    name: str
    """Before the keys of the result: nothing for ours."""
    servers: Sequence[Worker]
    client: Worker

    def steps_per_s(self, seconds: float, *, silent: bool = False) -> tuple[float, list[float]]:
        answer = self.client.ask(do="steps", seconds=seconds, silent=silent)
        return len(answer["each_s"]) / answer["seconds"], answer["each_s"]

    def failed(self) -> dict[str, Any]:
        return self.client.ask(do="failed")


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
@click.option("--repetitions", default=5, show_default=True, help="Turns of each side.")
@click.option("--seconds", default=8.0, show_default=True, help="Of one turn.")
@click.option("--silent-seconds", default=30.0, show_default=True, help="With one node silent.")
def main(as_json: bool, repetitions: int, seconds: float, silent_seconds: float) -> None:
    with ExitStack() as stack:
        sides = [
            _start(stack, "", "benchmarks.moe_layer_ours"),
            _start(stack, "hivemind_", "benchmarks.moe_layer_hivemind"),
        ]
        for side in sides:
            side.steps_per_s(seconds / 2)  # warm
        result: dict[str, Any] = processor() | {"repetitions": repetitions}
        healthy: dict[str, list[float]] = {side.name: [] for side in sides}
        each: dict[str, list[float]] = {side.name: [] for side in sides}
        for repetition in range(repetitions):
            for side in sides if repetition % 2 == 0 else reversed(sides):
                rate, steps_s = side.steps_per_s(seconds)
                healthy[side.name].append(rate)
                each[side.name] += steps_s
        for side in sides:
            result |= _figures(side, healthy[side.name], each[side.name])
            result |= _with_one_silent(side, silent_seconds, healthy[side.name])
    ratio = result["steps_per_s"] / result["hivemind_steps_per_s"]
    result["ratio_steps"] = round(ratio, 2)
    broken = [key for key, least in BOUNDS.items() if not result[key] >= least]
    for key in broken:
        _say(f"BOUND BROKEN: {key} is {result[key]}, at least {BOUNDS[key]} was expected")
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(1 if broken else 0)


def _start(stack: ExitStack, name: str, module: str) -> Side:
    first = stack.enter_context(Worker(module, "serve", "0"))
    at = first.hello["at"]
    servers = [first] + [
        stack.enter_context(Worker(module, "serve", str(index), at)) for index in range(1, NODES)
    ]
    client = stack.enter_context(Worker(module, "ask", "0", at))
    return Side(name, servers, client)


def _figures(side: Side, rates: Sequence[float], each_s: Sequence[float]) -> dict[str, Any]:
    cuts = statistics.quantiles(each_s, n=100, method="inclusive")
    rate = statistics.median(rates)
    _say(f"{side.name or 'ours '}: {rate:.1f} steps a second")
    return {
        f"{side.name}steps_per_s": round(rate, 2),
        f"{side.name}step_p50_ms": round(1000 * cuts[49], 2),
        f"{side.name}step_p99_ms": round(1000 * cuts[98], 2),
    }


def _with_one_silent(side: Side, seconds: float, healthy: Sequence[float]) -> dict[str, Any]:
    """Stop the last node, with all its processes, and count steps from then on."""
    family = family_of(side.servers[-1].pid)
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        rate, each_s = side.steps_per_s(seconds, silent=True)
        failed = side.failed()
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    share = rate / statistics.median(healthy)
    _say(f"{side.name or 'ours '}: {share:.0%} of the healthy steps with one node silent")
    return {
        f"{side.name}share_of_healthy_steps": round(share, 3),
        f"{side.name}silent_step_max_s": round(max(each_s), 3),
        **{f"{side.name}{key}": value for key, value in failed.items()},
    }


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
