"""`[start]`: the checkpoint of another run that this one goes on from. Without it a run begins at step 0.

A whole checkpoint is many files, each on the disk of whoever held that part. Its hash is that of the list of them, so
that whoever knows it can check the list, and with the list each file by itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from protocols.schema import Range, SchemaError, Size

_HEX: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """`murmura checkpoints list` prints the three keys."""

    run: Annotated[str, Size(64, 64)]
    """RunID of the other run."""
    step: Annotated[int, Range(1, 2**30)]
    """Of its checkpoint; this run counts on from it, in steps and in data."""
    sha256: Annotated[str, Size(64, 64)]
    """`start_digest` of the checkpoint's files."""

    def __post_init__(self) -> None:
        for key in ("run", "sha256"):
            if not _HEX.fullmatch(getattr(self, key)):
                raise SchemaError(key, "must be 64 digits of lower-case hex")


def start_digest(files: Mapping[str, str]) -> str:
    """Hash a whole checkpoint.

    Args:
      files: the name of each part, and the SHA-256 of its file in hex.
    """
    lines = "".join(f"{sha256} {part}\n" for part, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
