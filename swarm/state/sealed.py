"""A small file of one run that is used whole or not at all, such as a vote.

It is a msgpack map: `format`, `run`, `body` (msgpack again) and `sha256` of the body.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import RunID
from protocols.schema import SchemaError, Size, decode, encode
from swarm.state.files import replacing, write_all

FORMAT: Final = 1
BYTES_MAX: Final = 16 * 1024 * 1024


class FileRefusedError(Exception):
    """The file is there and cannot be used; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    format: int
    run: str
    body: Annotated[bytes, Size(0, BYTES_MAX)]
    sha256: Annotated[bytes, Size(32, 32)]


def read_sealed(path: Path, run: RunID) -> Any:
    """Return the body, unpacked; None when there is no file. Raises FileRefusedError."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise FileRefusedError("it is larger than any of its kind")
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileRefusedError(f"it cannot be read: {error.strerror}") from error
    try:
        return unpack_untrusted(_body_of(raw, run))
    except RemoteProtocolError as error:
        raise FileRefusedError("it is torn or damaged") from error


def _body_of(raw: bytes, run: RunID) -> bytes:
    """Raises FileRefusedError, RemoteProtocolError."""
    data = unpack_untrusted(raw)
    form = data.get("format") if isinstance(data, dict) else None
    if not isinstance(form, int):
        raise FileRefusedError("it is another file, or one of a program before the first release")
    if form > FORMAT:
        raise FileRefusedError(
            f"it has format {form}, this program knows {FORMAT}: a newer one has written it"
        )
    try:
        envelope = decode(_Envelope, data)
    except SchemaError as error:
        raise FileRefusedError(f"it is damaged: {error}") from error
    if envelope.run != str(run):
        raise FileRefusedError(f"it is of another run, {envelope.run[:16]!r}")
    if hashlib.sha256(envelope.body).digest() != envelope.sha256:
        raise FileRefusedError("it is damaged: its content has another hash than it says")
    return envelope.body


def write_sealed(path: Path, run: RunID, body: Any) -> None:
    """Have plain data on disk when it returns. In a thread. Raises OSError."""
    packed = bytes(msgpack.packb(body))
    digest = hashlib.sha256(packed).digest()
    envelope = _Envelope(format=FORMAT, run=str(run), body=packed, sha256=digest)
    with replacing(path) as file:
        write_all(file, bytes(msgpack.packb(encode(envelope))))
