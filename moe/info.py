"""What is known of the mode `moe` without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from protocols.run import RunSpec
from protocols.run.data import TextSpec
from swarm.data.text import read_run_text
from swarm.mode_info import ModeInfo, Wishes

MODE: Final = "moe"


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


INFO: Final = ModeInfo(
    name=MODE,
    summary="feed-forward layers are experts that live on the nodes; every node asks those it needs",
    build="moe.mode:MoeMode",
    shown=(
        *("step", "steps", "loss", "held_out_loss", "experts_alive", "experts", "experts_hosted"),
        *("experts_adopted", "experts_lost", "steps_failed", "staleness", "search_p50_ms"),
        *("search_p95_ms", "call_p50_ms", "call_p95_ms", "waiting_for"),
    ),
    check_wishes=check_wishes,
    check_data=check_data,
    waits_for=waits_for,
)
