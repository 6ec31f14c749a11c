"""What is known of the mode `pipeline` without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from protocols.ids import PeerID
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from protocols.schema import SchemaError
from swarm.mode_info import Metric, ModeInfo, Wishes
from swarm.pipeline.data import load_dataset
from swarm.pipeline.forecast import forecast
from swarm.pipeline.journal import last_record

MODE: Final = "pipeline"
JOURNAL: Final = "records.msgpack"
"""In the run's folder: the records that the members decided."""


def check_wishes(run: RunSpec, wishes: Wishes) -> None:
    """Refuse a wish for a stage that the run does not have."""
    stages = pipeline_of(run).stages
    if wishes.stage is not None and wishes.stage >= stages:
        raise ValueError(
            f"stage must be 0 to {stages - 1}, not {wishes.stage}: the run {run.name} has {stages} stages"
        )


def check_data(run: RunSpec, path: str) -> str:
    """Read the run's text as a node that trains would."""
    dataset = load_dataset(run, path=path)
    sha256 = pipeline_of(run).data.sha256
    return f"{dataset.held_out_range.stop} bytes, hash {sha256[:8]} as the run names it"


def last_members(folder: Path) -> frozenset[PeerID]:
    """Return the members of the last record that was written down; a journal that cannot be read names nobody."""
    try:
        record = last_record(folder / JOURNAL)
    except (OSError, SchemaError):
        return frozenset()
    return (
        frozenset(member.peer for member in record.members) if record is not None else frozenset()
    )


def checkpoint_parts(run: RunSpec) -> tuple[str, ...]:
    """Name all stages."""
    return tuple(f"stage/{stage}" for stage in range(pipeline_of(run).stages))


def waits_for(section: Mapping[str, Any]) -> str:
    """Say what a draining member waits for."""
    if not section.get("member"):
        return ""
    if section.get("asked_to_stay"):
        return f"nobody else holds the state of stage {section['stage']}; the others cannot go on without it: waiting for one of them to fetch it"
    reason = section.get("waiting_for")
    return "waiting for the members to let this node go" + (
        f", and these for {reason}" if reason else ""
    )


INFO: Final = ModeInfo(
    name=MODE,
    summary="a model cut in stages, each held by several peers; all share every optimizer step (SWARM)",
    build="swarm.pipeline.mode:PipelineMode",
    shown=(
        *("stage", "step", "steps", "loss", "held_out_loss", "tokens_per_second"),
        *("members_by_stage", "waiting_for", "data_problem", "journal_problem"),
    ),
    measure="swarm.pipeline.measure:measure",
    metrics=(
        Metric(key="tokens_per_second", help="Tokens that the whole run trains on."),
        Metric(
            key="members_by_stage",
            name="stage_members",
            label=("stage", ""),
            help="Members that hold a stage; without one nothing goes on.",
        ),
        Metric(key="leading", help="1 while this node leads the run."),
        Metric(key="microbatches_in_flight", help="Microbatches that this node drives."),
        Metric(key="microbatches_counted", counts=True, help="Microbatches counted here."),
        Metric(key="calls_served", counts=True, help="Calls of trainers that were computed."),
        Metric(key="calls_refused", counts=True, help="Calls of trainers that were turned away."),
        Metric(key="queue", name="queue_tasks", help="Tasks that wait for the compute thread."),
        Metric(key="compute_busy_seconds", counts=True, help="Time in which it computed."),
        Metric(key="tensors_held_bytes", help="Activations held for microbatches in flight."),
        Metric(key="expulsions", counts=True, help="Times that this node was put out of the run."),
        Metric(key="state_fetched_bytes", counts=True, help="State fetched from other members."),
    ),
    check_wishes=check_wishes,
    check_data=check_data,
    forecast=forecast,
    last_members=last_members,
    waits_for=waits_for,
    checkpoint_parts=checkpoint_parts,
    check_start="swarm.pipeline.start:check_start",
)
