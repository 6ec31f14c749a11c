"""The journal of decided records on disk: what each step counted, and who was in. Append-only, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgpack

from protocols.ledger.view import Record
from protocols.schema import decode, encode

JOURNAL_BYTES_MAX: Final = 64 * 1024 * 1024
"""At some 500 bytes a record more than 100,000 steps; then the older half is dropped."""


class Journal:
    """Appends records to a file. Used from one thread."""

    def __init__(self, path: Path, *, bytes_max: int = JOURNAL_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max

    def append(self, record: Record) -> None:
        """Write one record. Raises OSError, as on a full disk."""
        if self._path.exists() and self._path.stat().st_size > self._bytes_max // 2:
            self._path.replace(self._path.with_suffix(".old"))
        with self._path.open("ab") as file:
            file.write(msgpack.packb(encode(record)))


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the records kept at `path`, oldest first; a record cut off by a crash ends the file."""
    for part in (path.with_suffix(".old"), path):
        if part.exists():
            with part.open("rb") as file:
                for data in msgpack.Unpacker(file, strict_map_key=False):
                    yield decode(Record, data)
