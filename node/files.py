"""Write small files so that a reader, or a crash, sees the old content or the new, never half of it."""

from __future__ import annotations

import codecs
import fcntl
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from node.errors import BusyError, ConfigError, file_error


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, on disk before it takes the name. Raises NodeError; then the old content is still there."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise file_error(error, f"cannot write {path}") from error


def read_toml(path: Path, what: str, *, bytes_max: int) -> dict[str, Any]:
    """Read a TOML file as editors of all kinds leave it: a byte order mark, UTF-16, CRLF and trailing blanks are no mistakes.

    Args:
      what: what the file is, for the errors: "the run file".
    Raises:
      NodeError: says in one sentence what is wrong, with the exit code that fits.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(bytes_max + 1)
    except OSError as error:
        raise file_error(error, f"cannot read {what} {path}", missing=ConfigError) from error
    if len(raw) > bytes_max:
        raise ConfigError(f"{path} is too large: {what} has at most {bytes_max} bytes")
    try:
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it however the process ends. Raises BusyError."""
    try:
        file = path.open("a+")
    except OSError as error:
        raise file_error(error, f"cannot write {path}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(20).strip()
            who = f" (process {holder})" if holder.isdigit() else ""
            raise BusyError(
                f"another murmura daemon{who} uses {path.parent}",
                "give this one its own folder with --state-dir, or stop the other with `murmura drain`",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        with suppress(OSError):
            file.truncate(0)
