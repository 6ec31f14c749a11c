"""The registry of modes: which ways of training this program knows. Nothing in it is ever loaded by a name from the network.

One line per mode. A program that brings a mode of its own calls `register` before it starts the command line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from moe.info import INFO as MOE
from protocols.run.tables import register_table
from swarm.collective.info import INFO as COLLECTIVE
from swarm.gossip.info import INFO as GOSSIP
from swarm.mode_info import ModeInfo
from swarm.pipeline.info import INFO as PIPELINE

if TYPE_CHECKING:
    from swarm.mode import Mode, RunContext

MODES: Final[dict[str, ModeInfo]] = {
    info.name: info for info in (PIPELINE, GOSSIP, COLLECTIVE, MOE)
}


def register(info: ModeInfo, table: type) -> None:
    """Make a mode known, with the shape of its table in the run file."""
    register_table(info.name, table)
    MODES[info.name] = info


def info_of(mode: str) -> ModeInfo:
    """Return what is known of a mode. A run is never decoded with a mode that is not here."""
    return MODES[mode]


def build_mode(context: RunContext) -> Mode:
    """Import the mode's code, which loads torch, and make its object. Takes seconds the first time."""
    module, _, name = info_of(context.run.mode).build.partition(":")
    build = cast("Callable[[Any], Mode]", getattr(importlib.import_module(module), name))
    return build(context)
