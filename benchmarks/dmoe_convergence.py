"""`python -m benchmarks.dmoe_convergence --json`: what latency and failures cost a mixture of remote experts and a dense network.

The emulation of Learning@home (arXiv:2002.04013, section 4.2) with the product's own layer, gate and experts, in virtual time:
many asynchronous trainers; every call takes an exponential time; a choice of an expert fails with some probability. The dense
network has as many parameters as the experts that compute one row, the same trainers, latencies and samples, and its gradients
are as late; its failures are samples that are missing in a gradient. Tested without latency and failures.

`accuracy_lost_points` is the accuracy at 0 ms minus that at 1000 ms with 10 % failures, each at its own swept rate. Its
difference between the models is paired over test images and seeds. Prints one JSON object on stdout, everything else on stderr.
Exits with 1 when the difference is not known well enough.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.dmoe import cases
from benchmarks.dmoe.cases import Job
from benchmarks.dmoe.plots import draw
from benchmarks.dmoe.report import best_rates, figures, name_of
from benchmarks.dmoe.trainers import Outcome, Sizes
from node.limits import processor


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dmoe_convergence", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="no table of the rows on stderr")
    parser.add_argument("--data", metavar="FILE.npz", help="other images than the digits")
    parser.add_argument("--seeds", type=int, default=6, help="for what the bound is on")
    parser.add_argument("--seeds-of-others", type=int, default=3, help="for other conditions")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to draw an svg file")
    options = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        swept = _run_all(pool, cases.sweep(options.data))
        rates = best_rates(swept)
        runs = _run_all(
            pool,
            cases.jobs(
                rates,
                seeds=options.seeds,
                seeds_of_others=options.seeds_of_others,
                file=options.data,
            ),
        )
    result = figures(runs, functools.cache(functools.partial(cases.tested, options.data)))
    result["sweep"] = _sweep(swept)
    result["sizes"] = asdict(Sizes())
    if options.plots is not None:
        draw(result["rows"], options.plots / "dmoe-convergence.svg")
    if not options.json:
        _table(result)
    result |= {"seconds": round(time.monotonic() - started, 1)} | processor()
    sys.stdout.write(json.dumps(result) + "\n")
    for broken in result["bounds_broken"]:
        print(f"bound broken: {broken}", file=sys.stderr)
    return 1 if result["bounds_broken"] else 0


def _run_all(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> dict[Job, Outcome]:
    """Run jobs on every core we may use, and say each on stderr."""
    runs: dict[Job, Outcome] = {}
    waiting = {pool.submit(cases.run, job): job for job in jobs}
    for done in as_completed(waiting):
        job, outcome = waiting[done], done.result()
        runs[job] = outcome
        print(
            f"{len(runs)}/{len(waiting)} {name_of(job.experts)} {_words(job)} seed={job.seed} rate={job.rate}: "
            f"{outcome.accuracy[-1]:.1f} %, staleness {outcome.staleness:.1f}",
            file=sys.stderr,
        )
    return {job: runs[job] for job in waiting.values()}


def _words(job: Job) -> str:
    condition = job.condition
    delayed = "experts" if condition.experts_only else "everything"
    return f"{condition.latency_ms:.0f} ms on {delayed}, {condition.failures:.0%} failures"


def _sweep(swept: dict[Job, Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "model": name_of(job.experts),
            "latency_ms": job.condition.latency_ms,
            "failures": job.condition.failures,
            "rate": job.rate,
            "accuracy": round(outcome.accuracy[-1], 2),
        }
        for job, outcome in swept.items()
    ]


def _table(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        reached = "  ".join(
            f"{name_of(experts)} {row[name_of(experts)]['accuracy']:.2f} %"
            for experts in cases.MODELS
        )
        print(
            f"{row['latency_ms']:.0f} ms, {row['failures']:.0%} failures, delay on {row['delay_on']}: {reached}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
