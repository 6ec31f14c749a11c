"""Which bytes a run trains on: files found by a pattern, in a fixed order, with one hash. No torch here.

A pattern is a file, a folder or a glob; `{stdlib}` in it is the standard library of the running interpreter, text that
every volunteer has. The text is the files' contents in the order of their names, each followed by one zero byte, cut
off at `bytes_max`. Names are relative to the folder the pattern names, so the hash is the same wherever the files lie.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocols.run import TextSpec
from swarm.data.errors import DataError

_GLOB_CHARACTERS: Final = frozenset("*?[")
_BINARY_PROBE_BYTES: Final = 8192
"""A file with a zero byte this early is not text (the rule git uses)."""
END_OF_FILE: Final = b"\0"


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


def read_text(pattern: str, *, bytes_max: int) -> Text:
    """Read what the pattern names, at most `bytes_max` bytes of it. Raises DataError when there is nothing to read."""
    digest = hashlib.sha256()
    pieces: list[bytes] = []
    room = bytes_max
    for name, path in _files(pattern):
        content = _content(path, room)
        if content is None:
            continue
        piece = (content + END_OF_FILE)[:room]
        for part in (name.encode("utf-8", "surrogateescape"), piece):
            digest.update(len(part).to_bytes(8, "little") + part)
        pieces.append(piece)
        room -= len(piece)
        if not room:
            break
    if not pieces:
        raise DataError(
            f"no text was found at {pattern}; `data` (or --data) names a file, a folder or a glob"
        )
    return Text(b"".join(pieces), digest.hexdigest(), len(pieces))


def read_run_text(spec: TextSpec, *, path: str = "") -> Text:
    """Read the run's text, from `path` where the volunteer keeps it elsewhere. Raises DataError, DataMismatchError."""
    where = path or spec.pattern
    text = read_text(where, bytes_max=spec.bytes_max)
    if text.sha256 != spec.sha256:
        raise DataMismatchError(
            where=where, expected=spec.sha256, found=text.sha256, files=text.files
        )
    return text


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
            content = file.read(bytes_max)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; `data` (or --data) needs read permission"
        ) from error
    return None if END_OF_FILE in content[:_BINARY_PROBE_BYTES] else content
