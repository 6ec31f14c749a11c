"""From runs to figures and their bounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.diloco.cases import (
    CHURN_EVERY,
    CONTEXT,
    LOCAL_STEPS,
    SEQUENCES,
    Job,
    Outcome,
)

BOUNDS: Final = {
    "loss_ratio_to_data_parallel": "at most 1.01: streaming, 2 peers, mean over seeds",
    "bytes_ratio": "at least 100: float32 gradients averaged at every step over what streaming sends",
    "peak_bandwidth_ratio": "what the fragments say, 1 / largest_fragment, within 2 %: DiLoCo's burst over streaming's, the same codec",
    "loss_ratio_with_churn": "at most 1.02",
}

Runs = Mapping[Job, Outcome]


def figures(runs: Runs) -> dict[str, Any]:
    """Return every figure, and whether the bounds hold."""
    some = next(iter(runs.values()))
    steps = next(iter(runs)).steps
    rates = sorted({job.rate for job in runs if job.method == "data_parallel"})
    by_rate = {rate: _loss(runs, "data_parallel", rate=rate) for rate in rates}
    best = min(by_rate.values())

    def ratio(method: str, peers: int, *, churn: bool = False) -> float:
        return round(_loss(runs, method, peers=peers, churn=churn) / best, 4)

    sizes = sorted({job.peers for job in runs if job.method == "streaming"})
    ours = _first(runs, "streaming", 2)
    whole = _first(runs, "diloco", 2)
    gradient_bytes = _every_gradient(some.parameters, peers=2)
    result: dict[str, Any] = {
        "loss_data_parallel": round(best, 4),
        "loss_diloco": round(_loss(runs, "diloco", peers=2), 4),
        "loss_streaming": round(_loss(runs, "streaming", peers=2), 4),
        "loss_ratio_to_data_parallel": ratio("streaming", 2),
        "loss_ratio_of_diloco": ratio("diloco", 2),
        "loss_ratio_with_churn": ratio("streaming", 2, churn=True),
        "loss_ratio_by_peers": {str(peers): ratio("streaming", peers) for peers in sizes},
        "loss_data_parallel_by_rate": {str(rate): round(loss, 4) for rate, loss in by_rate.items()},
        "bytes_ratio": round(gradient_bytes * steps / ours.sent, 1),
        "bytes_ratio_to_bfloat16": round(gradient_bytes / 2 * steps / ours.sent, 1),
        "bytes_ratio_of_diloco": round(gradient_bytes * steps / whole.sent, 1),
        "peak_bandwidth_ratio": round(
            # DiLoCo sends float32 in this benchmark, streaming four bits: what fragments alone save.
            whole.peak / ours.peak * (ours.sent / whole.sent), 2,
        ),
        "largest_fragment": round(ours.largest_share, 4),
        "peak_bandwidth_ratio_to_data_parallel": round(gradient_bytes / ours.peak, 1),
        "tokens_per_parameter": round(steps * SEQUENCES * CONTEXT / some.parameters, 1),
        "parameters": some.parameters,
        "steps": steps,
        "local_steps": LOCAL_STEPS,
        "steps_between_kills": CHURN_EVERY,
        "seeds": len({job.seed for job in runs}),
        "bounds": BOUNDS,
    }  # fmt: skip
    return result | {"bounds_broken": _broken(result)}


def _broken(result: Mapping[str, Any]) -> list[str]:
    holds = {
        "loss_ratio_to_data_parallel": result["loss_ratio_to_data_parallel"] <= 1.01,
        "bytes_ratio": result["bytes_ratio"] >= 100,
        "peak_bandwidth_ratio": result["peak_bandwidth_ratio"] * result["largest_fragment"] >= 0.98,
        "loss_ratio_with_churn": result["loss_ratio_with_churn"] <= 1.02,
    }
    return [f"{name}: {result[name]}" for name, held in holds.items() if not held]


def _every_gradient(parameters: int, *, peers: int) -> float:
    """Return what one peer sends per step when float32 gradients are averaged by a butterfly."""
    return 2 * (peers - 1) / peers * 4 * parameters


def _loss(
    runs: Runs, method: str, *, peers: int = 2, churn: bool = False, rate: float | None = None
) -> float:
    """Return the mean loss over the seeds."""
    return statistics.mean(
        outcome.loss
        for job, outcome in runs.items()
        if (job.method, job.churn) == (method, churn)
        and (method == "data_parallel" or job.peers == peers)
        and rate in (None, job.rate)
    )


def _first(runs: Runs, method: str, peers: int) -> Outcome:
    """Return one run of these: what they send does not depend on the seed."""
    return next(
        outcome
        for job, outcome in runs.items()
        if (job.method, job.peers, job.churn) == (method, peers, False)
    )
