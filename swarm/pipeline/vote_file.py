"""The vote file: what this node has said on how the run goes on, and as whom, so that a loss of power takes no word back.

The file is a msgpack map: `format`, `run`, `body` (what is kept, msgpack again) and `sha256` of the body.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import RunID
from protocols.ledger.restart import Vote
from protocols.schema import Natural, SchemaError, Size, decode, encode
from swarm.state.files import replacing, write_all

log = logging.getLogger(__name__)

VOTE: Final = "vote.msgpack"
"""In the run's folder."""
FORMAT: Final = 1
_BYTES_MAX: Final = 16 * 1024 * 1024
"""A vote for a record of the most members that there can be has some 2 MB."""


class VoteRefusedError(Exception):
    """The file is there and cannot be used; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the file says."""

    incarnation: Natural | None = None
    """As whom this node takes part while it waits. None once it has begun or joined: the next life is somebody else."""
    vote: Vote | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    format: int
    run: str
    body: Annotated[bytes, Size(0, _BYTES_MAX)]
    sha256: Annotated[bytes, Size(32, 32)]


def read_vote(path: Path, run: RunID) -> Kept:
    """Return what is kept; nothing when there is no file. Raises VoteRefusedError: that is not the same as no vote."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise VoteRefusedError("it is larger than any vote")
        raw = path.read_bytes()
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        raise VoteRefusedError(f"it cannot be read: {error.strerror}") from error
    return _decoded(raw, run)


def _decoded(raw: bytes, run: RunID) -> Kept:
    try:
        data = unpack_untrusted(raw)
    except RemoteProtocolError as error:
        raise VoteRefusedError("it is torn or damaged") from error
    form = data.get("format") if isinstance(data, dict) else None
    if not isinstance(form, int):
        raise VoteRefusedError("it is no vote, or one of a program before the first release")
    if form > FORMAT:
        raise VoteRefusedError(
            f"it has format {form}, this program knows {FORMAT}: a newer one has written it"
        )
    try:
        envelope = decode(_Envelope, data)
    except SchemaError as error:
        raise VoteRefusedError(f"it is damaged: {error}") from error
    if envelope.run != str(run):
        raise VoteRefusedError(f"it is of another run, {envelope.run[:16]!r}")
    if hashlib.sha256(envelope.body).digest() != envelope.sha256:
        raise VoteRefusedError("it is damaged: its content has another hash than it says")
    try:
        return decode(Kept, unpack_untrusted(envelope.body))
    except (SchemaError, RemoteProtocolError) as error:
        raise VoteRefusedError(f"it is damaged: {error}") from error


def write_vote(path: Path, run: RunID, kept: Kept) -> bool:
    """Have this on disk when it returns True; says why it is not. In a thread."""
    body = bytes(msgpack.packb(encode(kept)))
    envelope = _Envelope(
        format=FORMAT, run=str(run), body=body, sha256=hashlib.sha256(body).digest()
    )
    try:
        with replacing(path) as file:
            write_all(file, bytes(msgpack.packb(encode(envelope))))
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
