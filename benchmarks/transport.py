"""How fast our streams and calls are, beside hivemind's own client: `python -m benchmarks.transport --json`.

Two p2pd, each with a process of ours and a process of hivemind's on it, four Python processes in all; one of them
works at a time. 128 MB go from one side to the other over one stream and over eight, ours and hivemind's in turn; the
receiver has them in memory before it answers. Then small calls, and opening streams. Medians; exit 1 when a bound is
broken.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.workers import Worker, cpu_seconds_of, processor

STREAM_BYTES: Final = 128_000_000
HIVEMIND_CHUNKS: Final = (1 << 16, 1 << 18, 1 << 20)
"""hivemind's own default comes first; the fastest on this machine is used."""
SMALL_CALLS: Final = 2000
SMALL_AT_ONCE: Final = 8
OPENED: Final = 100
GB: Final = 1e9

BOUNDS: Final[dict[str, tuple[str, float]]] = {
    "ratio_to_hivemind": (">=", 1.2),
    "calls_per_second_small": (">=", 1000.0),
    "open_stream_ms": ("<=", 5.0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One transfer of STREAM_BYTES."""

    seconds: float
    client_cpu_s: float
    server_cpu_s: float
    p2pd_cpu_s: float
    """Both p2pd together."""

    @property
    def mb_s(self) -> float:
        return STREAM_BYTES / 1e6 / self.seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """The four processes: ours and hivemind's, on either side."""

    client: Worker
    server: Worker
    hivemind_client: Worker
    hivemind_server: Worker

    @property
    def server_peer(self) -> str:
        return str(self.server.hello["peer"])

    def ours(self, streams: int) -> Sample:
        question = {
            "do": "stream",
            "peer": self.server_peer,
            "streams": streams,
            "bytes": STREAM_BYTES,
        }
        return self._sample(self.client, self.server, question)

    def hivemind(self, streams: int, chunk_bytes: int) -> Sample:
        question = {
            "do": "stream",
            "peer": self.server_peer,
            "streams": streams,
            "bytes": STREAM_BYTES,
        }
        return self._sample(
            self.hivemind_client, self.hivemind_server, question | {"chunk_bytes": chunk_bytes}
        )

    def _sample(self, client: Worker, server: Worker, question: dict[str, Any]) -> Sample:
        server_s, p2pd_s = server.ask(do="cpu")["cpu_seconds"], self._p2pd_cpu_s()
        answer = client.ask(**question)
        return Sample(
            answer["seconds"],
            answer["cpu_seconds"],
            server.ask(do="cpu")["cpu_seconds"] - server_s,
            self._p2pd_cpu_s() - p2pd_s,
        )

    def _p2pd_cpu_s(self) -> float:
        return sum(
            cpu_seconds_of(worker.hello["p2pd_pid"]) for worker in (self.client, self.server)
        )


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
@click.option(
    "--repetitions",
    default=9,
    show_default=True,
    help="Transfers of each kind; medians are reported.",
)
@click.option("--full", is_flag=True, help="Also small calls one and sixteen at a time.")
def main(as_json: bool, repetitions: int, full: bool) -> None:
    with ExitStack() as stack:
        bench = _start(stack)
        result: dict[str, Any] = processor() | {
            "stream_bytes": STREAM_BYTES,
            "repetitions": repetitions,
        }
        result |= _streams(bench, 1, repetitions, suffix="")
        result |= _streams(bench, 8, repetitions, suffix="_8_streams")
        result |= _calls(bench, full=full)
    broken = [_broken(key, result[key]) for key in BOUNDS if _broken(key, result[key])]
    for line in broken:
        _say(f"BOUND BROKEN: {line}")
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(1 if broken else 0)


def _start(stack: ExitStack) -> Bench:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mu")))
    ours = []
    for side in ("a", "b"):
        (folder / side).mkdir()
        ours.append(stack.enter_context(Worker("benchmarks.transport_ours", str(folder / side))))
    client, server = ours
    client.ask(do="connect", address=server.hello["address"])
    theirs = [
        stack.enter_context(Worker("benchmarks.transport_hivemind", worker.hello["control"]))
        for worker in ours
    ]
    return Bench(client, server, *theirs)


def _streams(bench: Bench, streams: int, repetitions: int, *, suffix: str) -> dict[str, float]:
    chunk_bytes = _best_chunk(bench, streams)
    bench.ours(streams)  # warm: streams open, windows grown
    ours: list[Sample] = []
    theirs: list[Sample] = []
    for repetition in range(repetitions):
        runs: list[Callable[[], None]] = [
            lambda: ours.append(bench.ours(streams)),
            lambda: theirs.append(bench.hivemind(streams, chunk_bytes)),
        ]
        for run in runs if repetition % 2 == 0 else reversed(runs):
            run()
        _say(
            f"{streams} stream(s): ours {ours[-1].mb_s:.0f} MB/s, hivemind {theirs[-1].mb_s:.0f} MB/s"
        )
    mb_s, hivemind_mb_s = _median(ours, "mb_s"), _median(theirs, "mb_s")
    result = {
        f"stream_mb_s{suffix}": round(mb_s, 1),
        f"hivemind_stream_mb_s{suffix}": round(hivemind_mb_s, 1),
        f"ratio_to_hivemind{suffix}": round(mb_s / hivemind_mb_s, 3),
        f"hivemind_chunk_bytes{suffix}": chunk_bytes,
    }
    for name, samples in (("", ours), ("hivemind_", theirs)):
        for part in ("client", "server", "p2pd"):
            per_gb = _median(samples, f"{part}_cpu_s") / STREAM_BYTES * GB
            result[f"{name}{part}_cpu_seconds_per_gb{suffix}"] = round(per_gb, 3)
    return result


def _best_chunk(bench: Bench, streams: int) -> int:
    """Try hivemind's chunk sizes, twice each after a warm-up."""
    bench.hivemind(streams, HIVEMIND_CHUNKS[0])
    speeds = {
        chunk_bytes: max(bench.hivemind(streams, chunk_bytes).mb_s for _ in range(2))
        for chunk_bytes in HIVEMIND_CHUNKS
    }
    _say(
        "hivemind by chunk size: "
        + ", ".join(f"{size >> 10} kB {speed:.0f} MB/s" for size, speed in speeds.items())
    )
    return max(speeds, key=lambda size: speeds[size])


def _calls(bench: Bench, *, full: bool) -> dict[str, float]:
    def calls_per_second(at_once: int) -> float:
        seconds: list[float] = [
            bench.client.ask(
                do="small", peer=bench.server_peer, calls=SMALL_CALLS, at_once=at_once
            )["seconds"]
            for _ in range(5)
        ]
        _say(
            f"small calls, {at_once} at a time: {', '.join(f'{SMALL_CALLS / each:.0f}' for each in seconds)} per s"
        )
        return round(SMALL_CALLS / statistics.median(seconds), 1)

    opened = bench.client.ask(do="open", peer=bench.server_peer, count=OPENED)["seconds"]
    result = {
        "calls_per_second_small": calls_per_second(SMALL_AT_ONCE),
        "calls_per_second_small_one_at_a_time": calls_per_second(1),
        "small_calls_at_once": SMALL_AT_ONCE,
        "open_stream_ms": round(1000 * statistics.median(opened), 3),
    }
    if full:
        result["calls_per_second_small_16_at_once"] = calls_per_second(16)
    return result


def _median(samples: list[Sample], name: str) -> float:
    values: list[float] = [getattr(sample, name) for sample in samples]
    return statistics.median(values)


def _broken(key: str, value: float) -> str:
    relation, bound = BOUNDS[key]
    kept = value >= bound if relation == ">=" else value <= bound
    return "" if kept else f"{key} is {value}, not {relation} {bound}"


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
