"""`python -m benchmarks.gossip --json`: fifty peers in virtual time, on every core there is.

Prints one JSON object on stdout, everything else on stderr. Exits with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.gossip import daemons
from benchmarks.gossip.cases import (
    LIARS,
    LIARS_AMONG_NEIGHBOURS,
    PEERS,
    Job,
    rounds_until,
    run,
)
from benchmarks.gossip.liars import LIES
from benchmarks.gossip.plots import draw
from benchmarks.gossip.report import all_cases, with_liars
from benchmarks.gossip.swarm import Curve
from node.limits import processor


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gossip", description=__doc__)
    parser.add_argument(
        "--json", action="store_true", help="the figures only, not drawn as a table"
    )
    parser.add_argument("--liars", action="store_true", help="ten of the fifty peers lie")
    parser.add_argument(
        "--daemons", action="store_true", help="eight real daemons against simulated ones"
    )
    parser.add_argument("--depth", type=int, action="append", help="layers; may be repeated (3, 5)")
    parser.add_argument("--data", metavar="FILE.npz", help="other images than the digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="where to draw svg files")
    options = parser.parse_args()
    started = time.monotonic()
    if options.daemons:
        return _print(daemons.figures(len(os.sched_getaffinity(0))), started)
    jobs = _liars_jobs(options) if options.liars else _jobs(options)
    runs = _run_all(jobs)
    if options.liars:
        figures = with_liars(runs, list(LIES))
        figures["liars"] = {"of": PEERS, "liars": LIARS, "neighbours_max": LIARS_AMONG_NEIGHBOURS}
    else:
        figures = all_cases(runs, own_target=options.data is not None)
    if options.plots is not None:
        draw(runs, options.plots)
    figures["seeds"] = options.seeds
    if not options.json:
        _table(figures)
    return _print(figures, started)


def _print(figures: dict[str, Any], started: float) -> int:
    """Print the one JSON object, and what is broken on stderr."""
    figures |= {"seconds": round(time.monotonic() - started, 1)} | processor()
    sys.stdout.write(json.dumps(figures) + "\n")
    for broken in figures["bounds_broken"]:
        print(f"bound broken: {broken}", file=sys.stderr)
    return 1 if figures["bounds_broken"] else 0


def _jobs(options: argparse.Namespace) -> list[Job]:
    return [
        Job(method=method, depth=depth, data=data, seed=seed, file=options.data)
        for method in ("plain", "ours", "ours_mean_target", "federated")  # the longest first
        for depth in options.depth or (3, 5)
        for data in ("iid", "dirichlet")
        for seed in range(1, options.seeds + 1)
    ]


def _liars_jobs(options: argparse.Namespace) -> list[Job]:
    (depth,) = options.depth or (3,)
    return [
        Job(
            method=method, depth=depth, data="dirichlet", seed=seed, file=options.data,
            lie=lie, placed=True,
        )
        for lie in (None, *LIES)
        for method in ("plain", "ours")
        for seed in range(1, options.seeds + 1)
    ]  # fmt: skip


def _run_all(jobs: Sequence[Job]) -> dict[Job, Curve]:
    """Run jobs on every core we may use, and say each on stderr."""
    runs: dict[Job, Curve] = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        waiting = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(waiting):
            job, curve = waiting[done], done.result()
            runs[job] = curve
            print(
                f"{len(runs)}/{len(jobs)} {job.method} depth={job.depth} {job.data} seed={job.seed} "
                f"lie={job.lie}: {curve.accuracy[-1]:.1f} %, 90 % at {rounds_until(curve, 90.0)}",
                file=sys.stderr,
            )
    return runs


def _table(figures: dict[str, Any]) -> None:
    cases = figures["cases"]
    for case in cases if isinstance(cases, list) else [{"lie": k, **v} for k, v in cases.items()]:
        line = "  ".join(
            f"{key}={value}" for key, value in case.items() if not isinstance(value, dict)
        )
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
