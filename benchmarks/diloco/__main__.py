"""`python -m benchmarks.diloco --json`: a byte-level language model trained by averaging every gradient, by DiLoCo and by Streaming DiLoCo.

Peers run in one process, with the product's schedule, outer optimizer and four-bit codec; every way gets the same tokens, steps
and learning rates, and data parallel the best of three rates. Bytes are those of tensors as they are sent by a butterfly; the
demo of the mode counts every byte on real connections. Prints one JSON object on stdout, everything else on stderr.
Exits with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.diloco.cases import OTHER_RATES, STEPS, Job, Outcome, run
from benchmarks.diloco.plots import draw
from benchmarks.diloco.report import figures
from node.limits import processor


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diloco", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the figures only, no table")
    parser.add_argument("--data", default="{stdlib}/*.py", help="text: a file, a folder or a glob")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to draw an svg file")
    options = parser.parse_args()
    started = time.monotonic()
    runs = _run_all(jobs(options.data, seeds=options.seeds, steps=options.steps))
    if options.plots is not None:
        draw(runs, options.plots / "diloco.svg")
    result = figures(runs) | {"seconds": round(time.monotonic() - started, 1)} | processor()
    if not options.json:
        _table(runs)
    sys.stdout.write(json.dumps(result) + "\n")
    for broken in result["bounds_broken"]:
        print(f"bound broken: {broken}", file=sys.stderr)
    return 1 if result["bounds_broken"] else 0


def jobs(pattern: str, *, seeds: int, steps: int) -> list[Job]:
    """Return all runs, the longest first."""
    found = []
    for seed in range(1, seeds + 1):
        job = functools.partial(Job, seed=seed, pattern=pattern, steps=steps)
        found += [
            *(job(method="streaming", peers=peers) for peers in (8, 4, 2)),
            job(method="streaming", peers=2, churn=True),
            job(method="diloco", peers=2),
            job(method="data_parallel", peers=2),
            *(job(method="data_parallel", peers=2, rate=rate) for rate in OTHER_RATES),
        ]
    return sorted(found, key=lambda job: -job.peers)


def _run_all(jobs: Sequence[Job]) -> dict[Job, Outcome]:
    """Run jobs on every core we may use, and say each on stderr."""
    runs: dict[Job, Outcome] = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(waiting):
            job, outcome = waiting[done], done.result()
            runs[job] = outcome
            print(
                f"{len(runs)}/{len(jobs)} {job.method} peers={job.peers} churn={job.churn} rate={job.rate} "
                f"seed={job.seed}: {outcome.loss:.4f} nats per byte, {outcome.sent} bytes sent",
                file=sys.stderr,
            )
    return runs


def _table(runs: dict[Job, Outcome]) -> None:
    for job, outcome in runs.items():
        churn = ", churn" if job.churn else ""
        print(
            f"{job.method:14} {job.peers} peers{churn:8} rate {job.rate:<7} seed {job.seed}  {outcome.loss:.4f}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
