"""`murmura checkpoints list|verify|export`: what is on this node's disk. Needs no daemon, and disturbs none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from node import exit_codes
from node.cli.options import json_option, node_options, print_json
from node.cli.render import duration, start_table
from node.clock import unix_s
from node.config import load
from node.errors import NodeError
from node.modes import info_of
from protocols.errors import RemoteProtocolError
from protocols.ids import RunID
from protocols.run import RunSpec, StartSpec, run_from_canonical_bytes_untrusted
from protocols.schema import encode
from protocols.shown import shown
from swarm.state.checkpoint import (
    FOLDER,
    WHOLE,
    Checkpoint,
    CheckpointRefusedError,
    Refused,
    scan,
    verify,
)
from swarm.state.start import whole_starts


@dataclass(frozen=True, slots=True)
class _RunHere:
    """What one run has on this disk."""

    run_id: RunID
    folder: Path
    spec: RunSpec | None
    checkpoints: list[Checkpoint]
    refused: list[Refused]


@click.group()
def command() -> None:
    """List, verify and export the checkpoints on this machine."""


_also_option = click.option(
    "--also",
    "folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The state folder of another node of the run, for the stages that are not here.",
)


@command.command("list")
@_also_option
@json_option
@node_options
def list_command(
    *,
    folders: tuple[Path, ...],
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> None:
    """List the checkpoints of every run, newest first. `verify` reads the files themselves.

    Those of mode moe that `murmura export --checkpoint` has gathered are marked so. Then, of each run, the `[start]` of the newest step that is whole among them: put into a run file, it lets another run
    go on from there.
    """
    runs = list(_runs(state_dir, runtime_dir, config_file))
    runs += [run for folder in folders for run in _runs(str(folder), None, config_file)]
    starts = _starts(runs)
    rows = [_row(run, checkpoint) for run in runs for checkpoint in run.checkpoints]
    refused = [_refused_row(item) for run in runs for item in run.refused]
    if as_json:
        listed = [encode(start) for start in starts]
        print_json({"schema_version": 1, "checkpoints": rows, "starts": listed, "refused": refused})
        return
    runs_wide = max((len(shown(row["run"] or "")) for row in rows), default=0)
    parts_wide = max((len(row["part"]) for row in rows), default=0)
    for row in rows:
        click.echo(
            f"{row['run_id'][:8]}  {shown(row['run'] or ''):<{runs_wide}}  {row['part']:<{parts_wide}}"
            f"  step {row['step']:<8} {row['bytes']:>14,} B  {duration(row['age_seconds'])} old"
            f"{'  gathered' if row['gathered'] else ''}  sha256 {row['sha256']}"
        )
    for row in refused:
        click.echo(f"refused: {row['path']}: {row['reason']}", err=True)
    if not rows:
        click.echo("no checkpoints here", err=True)
    told: set[str] = set()
    for start in starts:
        if start.run not in told:
            click.echo(start_table(encode(start)))
        told.add(start.run)


def _starts(runs: list[_RunHere]) -> list[StartSpec]:
    """Return, of each run, the steps that another run can begin from, newest first."""
    starts: list[StartSpec] = []
    for run_id in dict.fromkeys(run.run_id for run in runs):
        same = [run for run in runs if run.run_id == run_id]
        spec = next((run.spec for run in same if run.spec is not None), None)
        parts = info_of(spec.mode).checkpoint_parts(spec) if spec is not None else ()
        found = [c for run in same for c in run.checkpoints]
        starts += whole_starts(run_id, found, parts) if parts else []
    return starts


@command.command("verify")
@json_option
@node_options
def verify_command(
    *, as_json: bool, state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> int:
    """Read every checkpoint and compare it with its manifest. Exit 1 when one is refused."""
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    for run in _runs(state_dir, runtime_dir, config_file):
        bad += [_refused_row(item) for item in run.refused]
        for checkpoint in run.checkpoints:
            try:
                verify(checkpoint)
            except CheckpointRefusedError as error:
                bad.append(_refused_row(Refused(checkpoint.manifest_file, str(error))))
            else:
                good.append(_row(run, checkpoint))
    if as_json:
        print_json({"schema_version": 1, "verified": good, "refused": bad})
    else:
        for row in bad:
            click.echo(f"refused: {row['path']}: {row['reason']}")
        click.echo(f"{len(good)} verified, {len(bad)} refused")
    return exit_codes.FAILED if bad else exit_codes.OK


@command.command("export")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--run-id", metavar="ID", default="", help="Which run, by the first letters of its id."
)
@click.option(
    "--step", type=click.IntRange(0), help="Which step; the newest that is whole if not given."
)
@_also_option
@json_option
@node_options
def export_command(
    *,
    path: Path,
    run_id: str,
    step: int | None,
    folders: tuple[Path, ...],
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> None:
    """Write the model of a checkpoint to PATH as one safetensors file, as `murmura export` would have."""
    runs = list(_runs(state_dir, runtime_dir, config_file))
    runs += [run for folder in folders for run in _runs(str(folder), None, config_file)]
    facts = _export(path, [run for run in runs if str(run.run_id).startswith(run_id)], step)
    if as_json:
        print_json({"schema_version": 1, **facts})
    else:
        click.echo(f"{path}: step {facts['step']}, {facts['bytes']:,} B")


def _export(path: Path, runs: list[_RunHere], step: int | None) -> dict[str, Any]:
    specs = {run.run_id: run.spec for run in runs if run.checkpoints and run.spec is not None}
    if len(specs) != 1:
        known = ", ".join(str(run_id)[:8] for run_id in specs) or "none"
        raise NodeError(
            f"there are checkpoints of {len(specs)} runs here: {known}", "name one with --run-id"
        )
    spec = next(iter(specs.values()))
    assert spec is not None
    from node.checkpoint_export import export_checkpoints  # loads torch

    found = [c for run in runs for c in run.checkpoints]
    return export_checkpoints(path, spec, found, step=step)


def _runs(
    state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> Iterator[_RunHere]:
    flags = {"state_dir": state_dir, "runtime_dir": runtime_dir}
    effective = load(
        {key: value for key, value in flags.items() if value is not None},
        config_file=Path(config_file) if config_file else None,
    )
    for folder in sorted(effective.paths.state_dir.glob("runs/*")):
        try:
            run_id = RunID.from_text(folder.name)
        except ValueError:
            continue
        found, refused = scan(folder / FOLDER, run_id)
        whole, odd = scan(folder / WHOLE, run_id)
        yield _RunHere(run_id, folder, _spec(folder, run_id), found + whole, refused + odd)


def _spec(folder: Path, run_id: RunID) -> RunSpec | None:
    try:
        return run_from_canonical_bytes_untrusted((folder / "run.msgpack").read_bytes(), run_id)
    except (OSError, RemoteProtocolError):
        return None


def _row(run: _RunHere, checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "run": run.spec.name if run.spec is not None else None,
        "run_id": str(run.run_id),
        "part": manifest.part,
        "step": manifest.version,
        "epoch": manifest.epoch,
        "data_position": manifest.data_position,
        "bytes": manifest.byte_count,
        "age_seconds": round(max(0.0, unix_s() - manifest.written_unix_s), 1),
        "sha256": manifest.sha256,
        "path": str(checkpoint.file),
        "gathered": checkpoint.folder.parent.name == WHOLE,
    }


def _refused_row(refused: Refused) -> dict[str, Any]:
    return {"path": str(refused.path), "reason": refused.reason}
