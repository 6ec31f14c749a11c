"""How long a beam search takes at each size, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write an svg file of the figures of `tests.sim.moe.scale.measure`."""
    from matplotlib.figure import Figure  # only who draws needs it

    sizes: Mapping[int, Mapping[str, float]] = result["sizes"]
    nodes, reported = list(sizes), result["search_reported_ms"]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    median = [sizes[count]["cold_p50_ms"] for count in nodes]
    slow = [sizes[count]["cold_p95_ms"] for count in nodes]
    axes.fill_between(nodes, median, slow, alpha=0.2, label="p50 to p95")
    axes.plot(nodes, median, marker="o", label="a node that knows nothing, p50")
    whole = [sizes[count]["look_up_p50_ms"] for count in nodes]
    axes.plot(nodes, whole, marker="o", linestyle="--", label="one whole look-up, p50")
    there = [reported[count] for count in nodes]
    axes.plot(
        nodes, there, marker="x", linestyle=":", color="grey", label="Learning@home, reported"
    )
    axes.set(xscale="log", xlabel="nodes", ylabel="milliseconds", ylim=(0, None))
    axes.set_title("Finding the 16 best experts (latencies assumed)")
    axes.set_xticks(nodes, [f"{count:,}" for count in nodes])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
