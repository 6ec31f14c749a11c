"""Accuracy over rounds, and what becomes of each layer's variance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gossip.cases import Job
from benchmarks.gossip.swarm import Curve

_NAMES = {
    "federated": "federated averaging",
    "ours": "murmura",
    "ours_mean_target": "murmura, mean target",
    "plain": "plain gossip",
}


def draw(runs: Mapping[Job, Curve], folder: Path) -> None:
    """Write `gossip-accuracy.svg` and `gossip-variance.svg`, or `gossip-liars.svg`. Shows the first seed."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = {job: curve for job, curve in runs.items() if job.seed == 1}
    if any(job.lie for job in shown):
        _accuracy(shown, folder / "gossip-liars.svg", by=lambda job: (job.lie or "no liars",))
    else:
        _accuracy(shown, folder / "gossip-accuracy.svg", by=lambda job: (job.depth, job.data))
        _variance(shown, folder / "gossip-variance.svg")


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # only who draws needs it

    columns = 2 if panels <= 4 else 3
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes


def _accuracy(runs: Mapping[Job, Curve], path: Path, *, by: Any) -> None:
    keys = sorted({by(job) for job in runs})
    figure, axes = _figure(len(keys))
    for axis, key in zip(axes, keys, strict=False):
        for job, curve in sorted(runs.items(), key=lambda item: item[0].method):
            if by(job) == key:
                axis.plot(curve.rounds, curve.accuracy, label=_NAMES[job.method])
        axis.set_title(
            ", ".join(f"{part} layers" if isinstance(part, int) else part for part in key)
        )
        axis.set(xlabel="rounds", ylabel="test accuracy, %", ylim=(0, 100))
    axes[0].legend(fontsize=8)
    figure.savefig(path)


def _variance(runs: Mapping[Job, Curve], path: Path) -> None:
    """Draw each weight matrix's variance over its first value; biases start at zero."""
    depth = max(job.depth for job in runs)
    chosen = [
        job
        for job in runs
        if job.depth == depth and job.data == "iid" and job.method != "ours_mean_target"
    ]
    chosen.sort(key=lambda job: job.method)
    figure, axes = _figure(len(chosen))
    for axis, job in zip(axes, chosen, strict=False):
        curve = runs[job]
        for layer in range(depth):
            column = [seen[2 * layer] / curve.variances[0][2 * layer] for seen in curve.variances]
            axis.plot(curve.rounds, column, label=f"layer {layer + 1}")
        axis.set_title(f"{_NAMES[job.method]}, {depth} layers")
        axis.set(xlabel="rounds", ylabel="variance / first variance", yscale="log")
    axes[0].legend(fontsize=8)
    figure.savefig(path)
