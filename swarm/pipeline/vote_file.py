"""The vote file: what this node has said on how the run goes on, and as whom, so that a loss of power takes no word back."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocols.ids import RunID
from protocols.ledger.restart import Vote
from protocols.schema import Natural, SchemaError, decode, encode
from swarm.state.sealed import FileRefusedError, read_sealed, write_sealed

log = logging.getLogger(__name__)

VOTE: Final = "vote.msgpack"
"""In the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the file says."""

    incarnation: Natural | None = None
    """As whom this node takes part while it waits. None once it has begun or joined: the next life is somebody else."""
    vote: Vote | None = None


def read_vote(path: Path, run: RunID) -> Kept:
    """Return what is kept; nothing when there is no file. Raises FileRefusedError: that is not the same as no vote."""
    body = read_sealed(path, run)
    if body is None:
        return Kept()
    try:
        return decode(Kept, body)
    except SchemaError as error:
        raise FileRefusedError(f"it is damaged: {error}") from error


def write_vote(path: Path, run: RunID, kept: Kept) -> bool:
    """Have this on disk when it returns True; says why it is not. In a thread."""
    try:
        write_sealed(path, run, encode(kept))
    except OSError as error:
        log.error("what this node votes cannot be written: %s", error.strerror)
        return False
    return True


def sync_file(path: Path) -> None:
    """Have on disk what was appended to a file; best effort. In a thread."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
