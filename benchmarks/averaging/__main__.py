"""Group averaging beside hivemind's DecentralizedAverager: `python -m benchmarks.averaging --json`.

Peers are processes of their own, each with a p2pd, on both sides; one side is up at a time, and they take turns. A round is
what the slowest peer took from wanting it to having its mean, finding the group included. Medians of the rounds after two
to warm up; exit 1 when a bound is broken.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import threading
from contextlib import ExitStack
from typing import Any, Final

import click

from benchmarks.averaging.cases import CASES, RATIO, RATIO_8BIT, Case, sample_of, vector_of
from benchmarks.averaging.sides import Hivemind, Ours, Side, ask_all, kill, measure
from benchmarks.workers import processor

MUST_BE_0: Final = (
    "rounds_failed", "mixing_rounds_failed", "rounds_failed_with_kills", "rounds_with_different_means",
)  # fmt: skip
KILLS: Final = Case(4, 10)
MIXING: Final = Case(16, 1)
MIXING_GROUP: Final = 4
MIXING_ROUNDS: Final = 5
MIXING_RATE: Final = 0.8
"""At least, of what random groups give."""
CODECS_8BIT: Final = ("uniform8",)
"""Of hivemind: the fastest one. See `benchmarks.averaging.theirs` for the others."""
ERROR_MAX: Final = {"float32": 1e-5, "int8": 0.05, "uniform8": 2.5, "quantile8": 2.5}
"""Of a mean of vectors with variance 1. hivemind's cut off what is beyond three standard deviations, in both directions; a
mean that was not exchanged is off by 3 and more."""


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end.")
@click.option("--rounds", default=10, show_default=True, help="Measured, of each side and case.")
@click.option("--case", "only", multiple=True, help="Only these, such as 4x40.")
@click.option("--kills", default=10, show_default=True, help="Rounds in which a peer is killed.")
@click.option("--mixing/--no-mixing", default=True, help="16 peers in groups of 4.")
@click.option("--float32/--no-float32", default=True, show_default=True)
@click.option("--eight-bit/--no-eight-bit", default=True, show_default=True)
def main(
    as_json: bool,
    rounds: int,
    only: tuple[str, ...],
    kills: int,
    mixing: bool,
    float32: bool,
    eight_bit: bool,
) -> None:
    result: dict[str, Any] = processor() | {"load_before": round(os.getloadavg()[0], 2)}
    result["rounds"] = rounds
    for case in CASES:
        if not only or case.name in only:
            if float32:
                result |= _compare(case, rounds)
            if eight_bit:
                result |= _compare_8bit(case, rounds)
    if kills:
        result |= _compare_kills(kills)
    if mixing:
        result |= _mix()
    broken = _broken(result)
    for text in broken:
        _say(f"BOUND BROKEN: {text}")
    if as_json:
        click.echo(json.dumps(result))
    sys.exit(1 if broken else 0)


def _broken(result: dict[str, Any]) -> list[str]:
    least = {"ratio_8bit": RATIO_8BIT, "ratio": RATIO, "mixing_rate_over_theory": MIXING_RATE}
    broken = []
    for key, value in result.items():
        name = key.rpartition(".")[2]
        if name in least and not (value is not None and value >= least[name]):
            broken.append(f"{key} is {value}, at least {least[name]} was expected")
        if name in MUST_BE_0 and value:
            broken.append(f"{key} is {value}, 0 was expected")
    return broken


def _compare(case: Case, rounds: int) -> dict[str, Any]:
    ours, theirs = _run(Ours, case, "float32", rounds), _run(Hivemind, case, "float32", rounds)
    return {
        f"{case.name}.seconds": ours["seconds"],
        f"{case.name}.hivemind_seconds": theirs["seconds"],
        f"{case.name}.ratio": _ratio(theirs, ours),
        f"{case.name}.cpu_seconds": ours["cpu_seconds"],
        f"{case.name}.hivemind_cpu_seconds": theirs["cpu_seconds"],
        f"{case.name}.rounds_failed": ours["rounds_failed"],
        f"{case.name}.hivemind_rounds_that_failed": theirs["rounds_failed"],
    }


def _compare_8bit(case: Case, rounds: int) -> dict[str, Any]:
    ours = _run(Ours, case, "int8", rounds)
    theirs = [_run(Hivemind, case, codec, rounds) for codec in CODECS_8BIT]
    fastest = min(theirs, key=lambda one: one["seconds"] or float("inf"))
    return {
        f"{case.name}.seconds_8bit": ours["seconds"],
        f"{case.name}.hivemind_seconds_8bit": fastest["seconds"],
        f"{case.name}.ratio_8bit": _ratio(fastest, ours),
        f"{case.name}.cpu_seconds_8bit": ours["cpu_seconds"],
        f"{case.name}.hivemind_cpu_seconds_8bit": fastest["cpu_seconds"],
        f"{case.name}.error_8bit": ours["error"],
        f"{case.name}.hivemind_error_8bit": fastest["error"],
    }


def _ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> float | None:
    if ours["seconds"] is None or theirs["seconds"] is None:
        return None
    return round(float(theirs["seconds"]) / float(ours["seconds"]), 2)


def _run(side: type[Ours] | type[Hivemind], case: Case, codec: str, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        peers = side(stack, case, codec)
        measured = measure(peers, case, rounds, error_max=ERROR_MAX[codec])
    _say(f"{side.__name__} {case.name} {codec}: {measured}")
    return measured


def _compare_kills(rounds: int) -> dict[str, Any]:
    ours, theirs = _kill(Ours, rounds), _kill(Hivemind, rounds)
    return {
        "rounds_with_kills": rounds,
        "rounds_failed_with_kills": ours["failed"],
        "rounds_with_different_means": ours["different"],
        "seconds_with_kills": ours["seconds"],
        "hivemind_rounds_that_failed_with_kills": theirs["failed"],
        "hivemind_rounds_with_other_means_for_others": theirs["different"],
        "hivemind_seconds_with_kills": theirs["seconds"],
    }


def _kill(kind: type[Ours] | type[Hivemind], rounds: int) -> dict[str, Any]:
    """Kill one peer in each round, some time while it lasts, and replace it; see how the others fare."""
    rng = random.Random(7)
    failed = different = 0
    seconds = []
    with ExitStack() as stack:
        side: Side = kind(stack, KILLS, "float32")
        usual = measure(side, KILLS, 3, error_max=ERROR_MAX["float32"])
        usual_s = usual["seconds"] or 1.0
        for version in range(10, 10 + rounds):
            victim = rng.randrange(KILLS.peers)
            ask_all(side.workers, do="prepare", version=version, elements=KILLS.elements)
            timer = threading.Timer(rng.random() * usual_s, kill, (side.workers[victim],))
            timer.start()
            answers = ask_all(side.workers, do="average", version=version)
            timer.join()
            kill(side.workers[victim])
            survivors = [answer for peer, answer in enumerate(answers) if peer != victim]
            finished = [answer for answer in survivors if "members" in answer]
            failed += len(finished) < len(survivors)
            different += not _all_close([answer["sample"] for answer in finished])
            seconds.append(max(answer["seconds"] for answer in survivors))
            _say(f"{kind.__name__} round {version}: {[_shown(answer) for answer in survivors]}")
            side.replace(victim)
    return {
        "failed": failed,
        "different": different,
        "seconds": round(statistics.median(seconds), 2),
    }


def _all_close(samples: list[list[float]]) -> bool:
    """Tell whether these are numbers of one mean, but for rounding."""
    return all(max(numbers) - min(numbers) < 1e-4 for numbers in zip(*samples, strict=True))


def _shown(answer: dict[str, Any]) -> str:
    if "members" not in answer:
        return f"{answer.get('failed')} after {answer['seconds']:.1f} s"
    return f"{answer['members']} members in {answer['seconds']:.1f} s"


def _mix() -> dict[str, Any]:
    """Average in groups of 4, again and again, and see how fast 16 peers come together."""
    peers, failed = MIXING.peers, 0
    with ExitStack() as stack:
        side = Ours(stack, MIXING, "float32", group=MIXING_GROUP)
        ask_all(side.workers, do="prepare", version=1, elements=MIXING.elements)
        before = _spread([sample_of(vector_of(p, 1, MIXING.elements)) for p in range(peers)])
        first = before
        for version in range(1, MIXING_ROUNDS + 1):
            answers = ask_all(side.workers, do="average", version=version, keep=True)
            finished = [answer for answer in answers if "members" in answer]
            failed += len(finished) < peers
            after = _spread([answer["sample"] for answer in finished])
            _say(f"mixing {version}: {len(finished)} peers, spread {before:.4f} to {after:.4f}")
            before = after
    # Of the variance between n peers, groups of g leave (n - g) / (g (n - 1)) on average.
    left = (peers - MIXING_GROUP) / (MIXING_GROUP * (peers - 1))
    rate = math.log(before / first) / (MIXING_ROUNDS * math.log(left))
    return {"mixing_rounds_failed": failed, "mixing_rate_over_theory": round(rate, 2)}


def _spread(samples: list[list[float]]) -> float:
    """Return the variance between peers, over all sampled numbers."""
    return statistics.fmean(statistics.pvariance(numbers) for numbers in zip(*samples, strict=True))


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
