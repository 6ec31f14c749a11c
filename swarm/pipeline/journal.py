"""The journal of decided records on disk: what each step counted, and who was in. Append-only, bounded."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgpack

from protocols.ledger.view import Record
from protocols.schema import decode, encode

JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""At some 500 bytes a record more than 100,000 steps; then the older half is dropped."""


class Journal:
    """Appends records to a file, each of them whole. Used from one thread."""

    def __init__(self, path: Path, *, bytes_max: int = JOURNAL_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._is_whole = False

    def append(self, record: Record) -> None:
        """Write one record, or raise OSError and write nothing of it, as on a full disk."""
        if not self._is_whole and self._path.exists():
            # What a crash cut off would hide all that comes after it.
            os.truncate(self._path, _last_span(self._path)[1])
        self._is_whole = True
        if self._path.exists() and self._path.stat().st_size > self._bytes_max // 2:
            self._path.replace(self._path.with_suffix(".old"))
        data = msgpack.packb(encode(record))
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(data) != len(data):  # a disk that fills up takes what fits
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def put_aside(self) -> None:
        """Begin anew: what was written is of a history that has ended. Best effort, as all of the journal."""
        self._is_whole = False
        for path in (self._path, self._path.with_suffix(".old")):
            with suppress(OSError):
                path.replace(path.with_suffix(f"{path.suffix}.given-up"))


def last_record(path: Path) -> Record | None:
    """Return the newest record kept at `path`. Raises OSError and SchemaError."""
    begins, ends = _last_span(path) if path.exists() else (0, 0)
    if begins == ends:
        return None
    with path.open("rb") as file:
        file.seek(begins)
        return decode(Record, msgpack.unpackb(file.read(ends - begins), strict_map_key=False))


def _last_span(path: Path) -> tuple[int, int]:
    """Return where the last record at `path` begins and ends, one that is cut off left out; some 100 MB/s."""
    begins = ends = 0
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file)
        with suppress(msgpack.OutOfData, ValueError):  # ValueError: not msgpack at all
            while True:
                unpacker.skip()
                begins, ends = ends, unpacker.tell()
    return begins, ends


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the records kept at `path`, oldest first; a record cut off by a crash ends the file."""
    for part in (path.with_suffix(".old"), path):
        if part.exists():
            with part.open("rb") as file:
                for data in msgpack.Unpacker(file, strict_map_key=False):
                    yield decode(Record, data)
