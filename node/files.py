"""Write small files so that a reader, or a crash, sees the old content or the new, never half of it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.errors import BusyError, PermissionRefusedError


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`, on disk before it takes the name. Raises PermissionRefusedError."""
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
        raise PermissionRefusedError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it however the process ends. Raises BusyError."""
    try:
        file = path.open("a+")
    except OSError as error:
        raise PermissionRefusedError(f"cannot write {path}: {error.strerror}") from error
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
