"""`[start]` of a run file against this machine: what changes between the two runs, and whether the files fit."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgpack

from node.errors import ConfigError
from node.modes import info_of
from protocols.errors import RemoteProtocolError
from protocols.ids import RunID
from protocols.run import RunSpec, run_from_canonical_bytes_untrusted
from swarm.state.start import StartMissingError, checkpoints_for, whole_here


def start_lines(run: RunSpec, runs: Path) -> list[str]:
    """Say what this run begins from. Loads torch when the whole checkpoint is here. Raises ConfigError when it cannot fit.

    Args:
      runs: the folder with one folder for each run.
    """
    start = run.start
    if start is None:
        return []
    lines = [f"begins from step {start.step} of run {start.run[:8]}"]
    before = _run_here(runs / start.run, RunID.from_text(start.run))
    if before is None:
        lines.append("that run's settings are not here, so what changed cannot be said")
    else:
        lines += [f"changed: {line}" for line in _changes(_plain(before), _plain(run))]
    try:
        whole = whole_here(start, checkpoints_for(start, runs / str(run.run_id)))
    except StartMissingError as error:
        return [*lines, f"{error}: what is missing must be on the disks of others"]
    module, _, name = info_of(run.mode).check_start.partition(":")
    try:
        getattr(importlib.import_module(module), name)(run, whole)
    except ValueError as error:
        raise ConfigError(
            f"start: {error}", "keep [model] and [optimizer] of the run it goes on from"
        ) from error
    return [*lines, "the whole checkpoint is here and fits"]


def _run_here(folder: Path, run_id: RunID) -> RunSpec | None:
    try:
        return run_from_canonical_bytes_untrusted((folder / "run.msgpack").read_bytes(), run_id)
    except (OSError, RemoteProtocolError):
        return None


def _plain(run: RunSpec) -> Any:
    """Return a run under the names that its file has."""
    return msgpack.unpackb(run.canonical_bytes())


def _changes(before: Any, after: Any, path: str = "") -> list[str]:
    if path == "start" or before == after:
        return []
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [f"{path}: {before!r} -> {after!r}"]
    return [
        line
        for key in dict.fromkeys([*before, *after])
        for line in _changes(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    ]
