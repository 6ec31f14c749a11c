"""The checkpoint that a run begins from, as far as it is on this disk. No torch here.

Its files are those of another run, in that run's folder; what was fetched of them lies in the folder of the run that
begins. Which files belong together is said by a list of them, whose hash the run file names (`protocols.run.start`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from protocols.ids import RunID
from protocols.run.start import StartSpec, start_digest
from swarm.state.checkpoint import FOLDER, WHOLE, Checkpoint, scan

FETCHED: Final = "start"
"""In a run's folder: the files of the checkpoint it began from, as other nodes sent them."""
Files: TypeAlias = dict[str, str]
"""Part -> SHA-256 of its file, in hex."""


class StartMissingError(Exception):
    """The checkpoint is not here, or not whole, or another one; the text says which, for people."""


def checkpoints_for(start: StartSpec, folder: Path) -> list[Checkpoint]:
    """Return what this disk has of the step that is named. Files are not verified yet.

    Args:
      folder: of the run that begins; runs are folders side by side.
    """
    run = RunID.from_text(start.run)
    found = [
        checkpoint
        for place in (
            folder.parent / start.run / FOLDER,
            folder.parent / start.run / WHOLE,
            folder / FETCHED,
        )
        for checkpoint in scan(place, run)[0]
    ]
    return [c for c in found if c.manifest.version == start.step]


def files_of(checkpoints: Iterable[Checkpoint]) -> Files:
    """List them. Of two files for one part the first counts."""
    files: Files = {}
    for checkpoint in checkpoints:
        files.setdefault(checkpoint.manifest.part, checkpoint.manifest.sha256)
    return files


def whole_starts(
    run: RunID, checkpoints: Iterable[Checkpoint], parts: Collection[str]
) -> list[StartSpec]:
    """Return the starts that these checkpoints of one run are enough for, newest first.

    Args:
      parts: all that a whole checkpoint of the run has.
    """
    by_order: dict[tuple[int, int], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        by_order.setdefault(checkpoint.manifest.order, []).append(checkpoint)
    return [
        StartSpec(run=str(run), step=order[1], sha256=start_digest(files_of(group)))
        for order, group in sorted(by_order.items(), reverse=True)
        if order[1] > 0 and {c.manifest.part for c in group} == set(parts)
    ]


def whole_here(start: StartSpec, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return the files that together have the hash which the run names. Raises StartMissingError."""
    here = list(checkpoints)
    for epoch in sorted({c.manifest.epoch for c in here}, reverse=True):
        group = {c.manifest.part: c for c in reversed(here) if c.manifest.epoch == epoch}
        if start_digest(files_of(group.values())) == start.sha256:
            return [group[part] for part in sorted(group)]
    if not here:
        raise StartMissingError(
            f"no checkpoint of run {start.run[:8]} at step {start.step} is here"
        )
    parts = ", ".join(sorted({c.manifest.part for c in here}))
    raise StartMissingError(
        f"what is here of run {start.run[:8]} at step {start.step} ({parts}) is not the whole that start.sha256 names,"
        f" or is another one: its own is {start_digest(files_of(here))[:16]}…"
    )


def listed(files: Mapping[str, str], checkpoints: Iterable[Checkpoint]) -> dict[str, Checkpoint]:
    """Choose, of what is here, the files of a list that was checked."""
    return {
        c.manifest.part: c for c in checkpoints if files.get(c.manifest.part) == c.manifest.sha256
    }
