"""Held-out loss over the bytes that each way of averaging has sent, and over steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.diloco.cases import Job, Outcome

_NAMES = {"data_parallel": "every gradient", "diloco": "DiLoCo", "streaming": "streaming, 4 bits"}


def draw(runs: Mapping[Job, Outcome], path: Path) -> None:
    """Write one svg file. Shows the first seed."""
    from matplotlib.figure import Figure  # only who draws needs it

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    by_step, by_bytes = figure.subplots(1, 2)
    first = min(job.seed for job in runs)
    for job, outcome in sorted(runs.items(), key=lambda item: _name(item[0])):
        if job.seed != first or job.rate != min(j.rate for j in runs):
            continue
        by_step.plot(outcome.steps, outcome.losses, label=_name(job))
        if job.peers != 2 or job.churn:
            continue
        sent = outcome.sent or 4 * outcome.parameters * outcome.steps[-1]
        megabytes = [sent / 1e6 * step / outcome.steps[-1] for step in outcome.steps]
        by_bytes.plot(megabytes, outcome.losses, label=_name(job))
    by_step.set(xlabel="local steps", ylabel="held-out loss, nats per byte")
    by_bytes.set(xlabel="megabytes sent by each of 2 peers", xscale="log")
    for axis in (by_step, by_bytes):
        axis.legend(fontsize=7)
    figure.savefig(path)


def _name(job: Job) -> str:
    name = _NAMES[job.method]
    if job.method != "data_parallel":
        name += f", {job.peers} peers"
    return f"{name}, churn" if job.churn else name
