"""From runs to figures: what latency and failures cost each model, how well that is known, and the bound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from benchmarks.dmoe.cases import MODELS, OTHERS, STILL, STORM, Job
from benchmarks.dmoe.trainers import Condition, Outcome

ERROR_MAX_POINTS: Final = 0.7

Runs = Mapping[Job, Outcome]


def name_of(experts: int) -> str:
    """Return the key of a model in the result."""
    return f"experts_{experts}" if experts else "dense"


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return the standard error of the mean of values of which those of one cluster may depend on each other."""
    mean = statistics.fmean(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    if len(sums) < 2:
        return math.inf
    factor = len(sums) / (len(sums) - 1)
    return math.sqrt(factor * sum(of * of for of in sums.values())) / len(values)


def best_rates(swept: Runs) -> dict[tuple[int, Condition], float]:
    """Return the rate of the highest accuracy in the end, of each model and condition."""
    best: dict[tuple[int, Condition], tuple[float, float]] = {}
    for job, outcome in swept.items():
        key = (job.experts, job.condition)
        best[key] = max(best.get(key, (-1.0, 0.0)), (outcome.accuracy[-1], job.rate))
    return {key: rate for key, (_, rate) in best.items()}


class _Losses:
    """What was lost on each test image of each seed: 1 when it was right at 0 ms and is wrong at the worst, -1 the reverse."""

    def __init__(self, runs: Runs, tested: Callable[[int], Sequence[int]]) -> None:
        self.seeds = sorted({job.seed for job in runs if job.condition == STORM})
        self.images = [image for seed in self.seeds for image in tested(seed)]
        self.seed_of = [seed for seed in self.seeds for _ in tested(seed)]
        right = {(job.experts, job.condition, job.seed): runs[job].right for job in runs}
        self.of = {
            experts: [
                float(before) - float(after)
                for seed in self.seeds
                for before, after in zip(
                    right[experts, STILL, seed], right[experts, STORM, seed], strict=True
                )
            ]
            for experts in MODELS
        }

    def points(self, values: Sequence[float]) -> tuple[float, float, float, float]:
        """Return a mean and its standard error in points, and the two parts of the error: from images, and from seeds.

        Both are added. The noise of single answers is in both, so the sum errs on the large side.
        """
        images = 100 * clustered_error(values, self.images)
        seeds = 100 * clustered_error(values, self.seed_of)
        return 100 * statistics.fmean(values), math.hypot(images, seeds), images, seeds


def figures(runs: Runs, tested: Callable[[int], Sequence[int]]) -> dict[str, Any]:
    """Return all figures.

    Args:
      tested: the images that a seed tests on, in the order of `Outcome.right`.
    """
    losses = _Losses(runs, tested)
    lost, errors, differences = {}, {}, {}
    for experts, values in losses.of.items():
        lost[name_of(experts)], errors[name_of(experts)], _, _ = losses.points(values)
        if experts:
            paired = [dense - ours for dense, ours in zip(losses.of[0], values, strict=True)]
            mean, error, images, seeds = losses.points(paired)
            differences[name_of(experts)] = {
                "difference_points": mean,
                "standard_error": error,
                "standard_error_from_images": images,
                "standard_error_from_seeds": seeds,
            }
    worst = max(found["standard_error"] for found in differences.values())
    broken = [] if worst <= ERROR_MAX_POINTS else [f"standard_error_of_difference: {worst:.2f}"]
    result: dict[str, Any] = _rounded(
        {
            "accuracy_lost_points": lost,
            "accuracy_lost_standard_error": errors,
            "difference_of_losses": differences,
            "standard_error_of_difference": worst,
            "seeds": len(losses.seeds),
            "images_tested": len(set(losses.images)),
            "rows": _rows(runs),
            "bounds": {
                "standard_error_of_difference": f"at most {ERROR_MAX_POINTS} points, for 16 and for 64 experts"
            },
            "bounds_broken": broken,
        }
    )
    return result


def _rows(runs: Runs) -> list[dict[str, Any]]:
    """Return one row for each condition, with the accuracy and the staleness of each model."""
    rows = []
    for condition in (STILL, STORM, *OTHERS):
        row: dict[str, Any] = {
            "latency_ms": condition.latency_ms,
            "failures": condition.failures,
            "delay_on": "experts only" if condition.experts_only else "everything",
        }
        for experts in MODELS:
            found = {j: runs[j] for j in runs if (j.experts, j.condition) == (experts, condition)}
            reached = [outcome.accuracy[-1] for outcome in found.values()]
            row[name_of(experts)] = {
                "accuracy": statistics.fmean(reached),
                "standard_error_over_seeds": statistics.stdev(reached) / math.sqrt(len(reached))
                if len(reached) > 1
                else None,
                "seeds": len(reached),
                "rate": next(iter(found)).rate,
                "staleness": statistics.fmean(o.staleness for o in found.values()),
                "staleness_trunk": statistics.fmean(o.staleness_trunk for o in found.values()),
                "batches_lost": sum(o.batches_lost for o in found.values()),
                "curve": mean_curve(list(found.values())),
            }
        rows.append(row)
    return rows


def mean_curve(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return the mean test accuracy over the samples trained on."""
    columns = zip(*(outcome.accuracy for outcome in outcomes), strict=True)
    return {
        "samples": [float(samples) for samples in outcomes[0].samples],
        "accuracy": [statistics.fmean(column) for column in columns],
    }


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 2) if abs(value) >= 0.1 else float(f"{value:.2g}")
        case dict():
            return {key: _rounded(of) for key, of in value.items()}
        case list():
            return [_rounded(of) for of in value]
        case _:
            return value
