"""Which bytes a run trains on: files found by a pattern, in a fixed order, with one hash. No torch here.

A pattern is a file, a folder or a glob; `{stdlib}` in it is the standard library of the running interpreter, text that
every volunteer has. The text is the files' contents in the order of their names, each followed by one zero byte, cut
off at `bytes_max`. Names are relative to the folder the pattern names, so the hash is the same wherever the files lie.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocols.run import TextSpec
from swarm.data.errors import DataError

_GLOB_CHARACTERS: Final = frozenset("*?[")
_BINARY_PROBE_BYTES: Final = 8192
"""A file with a zero byte this early is not text (the rule git uses)."""
END_OF_FILE: Final = b"\0"
_MEMORY_SHARE: Final = 4
"""Text may take a half of what a node may take, and is there twice for a moment."""


class DataMismatchError(DataError):
    """The files here are not the ones the run names."""

    def __init__(self, *, where: str, expected: str, found: str, files: int) -> None:
        super().__init__(
            f"the text at {where} ({files} files) is not what this run trains on: its hash is {found}, "
            f"the run names {expected}; point `data` (or --data) at the run's own text"
            + (", or use the Python version the run was made with" if "{stdlib}" in where else "")
        )
        self.where = where
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class Text:
    """What a pattern names."""

    data: bytes
    sha256: str
    """Hex, over every file's name and used contents, each with its length in front."""
    files: int


def read_text(pattern: str, *, bytes_max: int, memory_max_bytes: int | None = None) -> Text:
    """Read what the pattern names, at most `bytes_max` bytes of it. Raises DataError when there is nothing to read.

    Args:
      memory_max_bytes: what this node may take in all. Text is in memory twice while it is put together, and may take half.
    """
    if not pattern.strip():
        raise DataError("an empty pattern names no text: name a file, a folder or a glob")
    text_max = None if memory_max_bytes is None else memory_max_bytes // _MEMORY_SHARE
    digest = hashlib.sha256()
    pieces: list[bytes] = []
    room = bytes_max
    for name, path in _files(pattern):
        content = _content(path, room if text_max is None else min(room, text_max + 1))
        if content is None:
            continue
        if text_max is not None and bytes_max - room + len(content) > text_max:
            raise DataError(
                f"the text at {pattern} is larger than the {text_max >> 20} MB that --memory-max-mb"
                f" {(memory_max_bytes or 0) >> 20} leaves for it: raise that, or give the run a smaller bytes_max"
            )
        piece = (content + END_OF_FILE)[:room]
        for part in (name.encode("utf-8", "surrogateescape"), piece):
            digest.update(len(part).to_bytes(8, "little") + part)
        pieces.append(piece)
        room -= len(piece)
        if not room:
            break
    if not any(piece != END_OF_FILE for piece in pieces):
        raise DataError(
            f"no text was found at {pattern}; `data` (or --data) names a file, a folder or a glob; files with zero bytes,"
            " such as UTF-16, are none"
        )
    return Text(b"".join(pieces), digest.hexdigest(), len(pieces))


def read_run_text(spec: TextSpec, *, path: str = "", memory_max_bytes: int | None = None) -> Text:
    """Read the run's text, from `path` where the volunteer keeps it elsewhere. Raises DataError, DataMismatchError."""
    where = path or spec.pattern
    text = read_text(where, bytes_max=spec.bytes_max, memory_max_bytes=memory_max_bytes)
    if text.sha256 != spec.sha256:
        raise DataMismatchError(
            where=where, expected=spec.sha256, found=text.sha256, files=text.files
        )
    return text


def is_within(pattern: str, folders: Sequence[str]) -> bool:
    """Tell whether all that a pattern can name lies in one of these folders, or in the standard library."""
    if ".." in Path(pattern).parts:
        return False
    root = _split(pattern)[0].resolve()
    allowed = [_split(folder)[0].resolve() for folder in ("{stdlib}", *folders) if folder]
    return any(root == folder or folder in root.parents for folder in allowed)


def _files(pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) sorted by name. Hidden files and compiled Python are nobody's text."""
    root, glob = _split(pattern)
    if not glob and root.is_file():
        yield "", root  # one file: what it is called does not matter
        return
    try:
        named = {path.relative_to(root).as_posix(): path for path in root.glob(glob or "**/*")}
    except ValueError as error:
        raise DataError(f"{pattern} is not a pattern: {error}") from error
    for name in sorted(named):
        parts = name.split("/")
        if (
            named[name].is_file()
            and "__pycache__" not in parts
            and not any(p.startswith(".") for p in parts)
        ):
            yield name, named[name]


def _split(pattern: str) -> tuple[Path, str]:
    """Split into the folder (or file) that is named and the glob below it, empty when there is none."""
    expanded = pattern.replace("{stdlib}", sysconfig.get_path("stdlib"))
    parts = Path(expanded).expanduser().parts
    for index, part in enumerate(parts):
        if _GLOB_CHARACTERS & set(part):
            return Path(*parts[:index]), "/".join(parts[index:])
    return Path(*parts), ""


def _content(path: Path, bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            # read(n) takes n bytes of memory at once, whatever the size of the file.
            content = file.read(min(bytes_max, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; `data` (or --data) needs read permission"
        ) from error
    return None if END_OF_FILE in content[:_BINARY_PROBE_BYTES] else content
