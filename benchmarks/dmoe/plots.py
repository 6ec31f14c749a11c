"""Test accuracy over the samples trained on, one panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TITLES = {
    "dense": "large feed-forward network",
    "experts_16": "mixture of 16 experts",
    "experts_64": "mixture of 64 experts",
}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write an svg file of the rows of `benchmarks.dmoe.report.figures`."""
    from matplotlib.figure import Figure  # only who draws needs it

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12.6, 3.6), layout="constrained")
    for axis, (model, title) in zip(figure.subplots(1, 3), _TITLES.items(), strict=True):
        for row in rows:
            curve = row[model]["curve"]
            axis.plot(
                curve["samples"],
                curve["accuracy"],
                label=_label(row),
                linestyle="--" if row["delay_on"] == "experts only" else "-",
            )
        axis.set(title=title, xlabel="samples", ylabel="test accuracy, %", ylim=(0, 100))
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path)


def _label(row: Mapping[str, Any]) -> str:
    label = f"{row['latency_ms']:.0f} ms"
    if row["failures"]:
        label += f", {row['failures']:.0%} failures"
    return label + (", experts only" if row["delay_on"] == "experts only" else "")
