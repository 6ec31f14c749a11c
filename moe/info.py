"""What is known of the mode `moe` without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from moe.forecast import forecast
from protocols.experts.spec import MoeSpec
from protocols.run import ByteTransformerSpec, RunSpec
from protocols.run.data import TextSpec
from swarm.data.text import read_run_text
from swarm.mode_info import Metric, ModeInfo, Wishes

MODE: Final = "moe"
EXPERT_PREFIX: Final = "expert/"
"""Of the names of experts, as parts."""
TRUNK: Final = "trunk"
"""What every trainer has of its own, as a part of its state: all but the experts."""


def checkpoint_parts(run: RunSpec) -> tuple[str, ...]:
    """Name the parts of a whole checkpoint: a trunk, and every expert."""
    if not isinstance(run.model, ByteTransformerSpec):
        return ()
    uids = run.settings(MoeSpec).uids(run.model.layers)
    return (TRUNK, *(f"{EXPERT_PREFIX}{uid}" for uid in uids))


def check_wishes(run: RunSpec, wishes: Wishes) -> None:
    """Refuse what means nothing where experts are spread over nodes."""
    if wishes.stage is not None:
        raise ValueError(f"the run {run.name} is not cut in stages: its nodes host experts")


def check_data(run: RunSpec, path: str) -> str:
    """Read the run's text as a node that trains would."""
    assert isinstance(run.data, TextSpec)
    text = read_run_text(run.data, path=path)
    return f"{len(text.data)} bytes, hash {text.sha256[:8]} as the run names it"


def waits_for(section: Mapping[str, Any]) -> str:
    """Say what a draining node waits for."""
    hosted = section.get("experts_hosted")
    return f"{hosted} experts are still to be handed over" if hosted else ""


def _percentiles(what: str, text: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(
            key=f"{what}_p{percent}_ms",
            name=f"{what}_seconds",
            scale=0.001,
            label=("percentile", str(percent)),
            help=text,
        )
        for percent in (50, 95)
    )


INFO: Final = ModeInfo(
    name=MODE,
    summary="feed-forward layers are experts that live on the nodes; every node asks those it needs",
    build="moe.mode:MoeMode",
    shown=(
        *("step", "steps", "loss", "held_out_loss", "experts_alive", "experts", "experts_hosted"),
        *("experts_adopted", "experts_lost", "steps_failed", "staleness", "search_p50_ms"),
        *("search_p95_ms", "call_p50_ms", "call_p95_ms", "waiting_for"),
    ),
    measure="moe.measure:measure",
    metrics=(
        Metric(key="experts", help="Experts of the run."),
        Metric(key="experts_alive", help="Experts whose host this node can name."),
        Metric(key="experts_hosted", help="Experts on this node."),
        Metric(key="experts_room", help="Experts that this node has room for."),
        Metric(key="experts_created", counts=True, help="Experts begun here."),
        Metric(key="experts_adopted", counts=True, help="Experts taken from a dead host."),
        Metric(key="experts_lost", counts=True, help="Experts begun anew: no snapshot was left."),
        Metric(key="experts_given_up", counts=True, help="Experts left to a host with more right."),
        Metric(key="experts_handed_over", counts=True, help="Experts given to another host."),
        Metric(key="experts_taken_over", counts=True, help="Experts received from another host."),
        Metric(
            key="experts_taken_back",
            counts=True,
            help="Own experts, from disk, after a while away.",
        ),
        Metric(key="snapshots_kept", help="Snapshots of others' experts kept here."),
        Metric(key="snapshots_kept_bytes", help="Their size."),
        Metric(key="steps_failed", counts=True, help="Batches given up."),
        Metric(key="experts_missing", counts=True, help="Answers that a batch went on without."),
        Metric(key="gradients_missing", counts=True, help="Gradients that an expert never took."),
        Metric(key="calls", counts=True, help="Calls of experts."),
        Metric(key="calls_absent", counts=True, help="Calls that nobody answered."),
        Metric(key="calls_hedged", counts=True, help="Calls asked a second time, to be quicker."),
        *_percentiles("call", "Time of a call of an expert."),
        *_percentiles("search", "Time of a beam search for experts."),
        Metric(key="staleness", help="Steps an expert made while a batch was away, the mean."),
        Metric(key="stale_refused", counts=True, help="Gradients refused as too old."),
        Metric(key="averages", counts=True, help="Averages of the trunk with other trainers'."),
    ),
    check_wishes=check_wishes,
    check_data=check_data,
    waits_for=waits_for,
    checkpoint_parts=checkpoint_parts,
    forecast=forecast,
    check_start="moe.start:check_start",
    name_in_model="moe.model:name_in_model",
    options={
        "checkpoint": "also write a whole checkpoint, moments and all, to this node's disk: another run can begin from it"
    },
)
