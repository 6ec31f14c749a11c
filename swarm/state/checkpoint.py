"""Checkpoints on disk: which there are, and whether each is what its manifest says. No torch here; writing and loading
tensors is `swarm.state.checkpoint_tensors`.

    checkpoints/stage+2/0000-000000000120.safetensors   the part's tensors, named by parameter and moment
    checkpoints/stage+2/0000-000000000120.json          its manifest, written last: without it there is no checkpoint

The name is epoch and version, so names sort as the run went on. A manifest is read as something that anybody may have
written: it names no file but its own, and nothing is used whose size, hash, run or format is another one.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from protocols.ids import RunID
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode
from protocols.state_calls import PartName
from swarm.state.manifest import TENSORS_MAX, NamedSpec

FOLDER: Final = "checkpoints"
"""In a run's folder."""
WHOLE: Final = "whole"
"""In a run's folder: whole checkpoints that somebody asked for, where parts count steps of their own. They stay."""
FORMAT: Final = 1
"""Raised when a file could be misread by a program that does not know what has changed."""
MANIFEST_BYTES_MAX: Final = 16 * 1024 * 1024
NOTE_BYTES_MAX: Final = 4 * 1024 * 1024
TENSORS_SUFFIX: Final = ".safetensors"
MANIFEST_SUFFIX: Final = ".json"
_READ_BYTES: Final = 1024 * 1024
HexDigest = Annotated[str, Size(64, 64)]


class CheckpointRefusedError(Exception):
    """This file is not used; the text says why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """What one checkpoint is of, and the hash of its file."""

    format: Natural
    run: Annotated[str, Size(1, 128)]
    """RunID: a checkpoint of another run is foreign."""
    part: PartName
    epoch: Natural
    version: Natural
    """Optimizer steps applied, or whatever else the part counts."""
    data_position: Natural
    """Batches, or steps, after which the data goes on."""
    written_unix_s: Annotated[float, Range(0.0)]
    file: Annotated[str, Size(1, 128)]
    byte_count: Natural
    sha256: HexDigest
    """Of the file. Equal states of one run give equal files, so replicas can compare theirs by it."""
    tensors: Annotated[tuple[NamedSpec, ...], Size(0, TENSORS_MAX)]
    note: Annotated[str, Size(0, 2 * NOTE_BYTES_MAX)] = ""
    """The mode's own, in base64: a pipeline keeps the record that committed the step."""

    @property
    def note_bytes(self) -> bytes:
        return base64.b64decode(self.note)

    @property
    def order(self) -> tuple[int, int]:
        return self.epoch, self.version


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A manifest that can be read and is of this run. Its file is checked by `verify`."""

    folder: Path
    manifest: CheckpointManifest

    @property
    def file(self) -> Path:
        return self.folder / self.manifest.file

    @property
    def manifest_file(self) -> Path:
        return self.file.with_suffix(MANIFEST_SUFFIX)


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that looks like a checkpoint and is not used."""

    path: Path
    reason: str


def folder_name(part: str) -> str:
    """Spell a part's name so that it is one folder, whatever is in it: `stage/2` -> `stage+2`."""
    name = quote(part, safe="").replace("%2F", "+")
    return "%2E" + name[1:] if name.startswith(".") else name


def stem_of(epoch: int, version: int) -> str:
    return f"{epoch:04d}-{version:012d}"


def scan(
    folder: Path, run: RunID, *, version_max: int | None = None
) -> tuple[list[Checkpoint], list[Refused]]:
    """Read all manifests below `folder`, newest first, and say which are refused. A missing folder holds none.

    Args:
      version_max: the run's last version; one beyond it cannot be this run's.
    """
    found: list[Checkpoint] = []
    refused: list[Refused] = []
    for path in _manifest_paths(folder):
        try:
            found.append(Checkpoint(path.parent, read_manifest(path, run, version_max=version_max)))
        except CheckpointRefusedError as error:
            refused.append(Refused(path, str(error)))
    found.sort(key=lambda checkpoint: checkpoint.manifest.order, reverse=True)
    return found, refused


def _manifest_paths(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for part in sorted(folder.iterdir()):
            if part.is_dir() and not part.is_symlink():
                yield from sorted(part.glob(f"*{MANIFEST_SUFFIX}"))


def read_manifest(path: Path, run: RunID, *, version_max: int | None = None) -> CheckpointManifest:
    """Read one manifest, its tensors not yet. Raises CheckpointRefusedError."""
    manifest = _decoded(path)
    if manifest.run != str(run):
        raise CheckpointRefusedError(f"it is of another run, {manifest.run[:16]}")
    if version_max is not None and manifest.version > version_max:
        raise CheckpointRefusedError(
            f"its version {manifest.version} is beyond the end of the run, {version_max}"
        )
    expected = stem_of(manifest.epoch, manifest.version)
    if path.parent.name != folder_name(manifest.part) or path.stem != expected:
        raise CheckpointRefusedError("it lies under the name of another part, epoch or version")
    if manifest.file != expected + TENSORS_SUFFIX:
        raise CheckpointRefusedError("it names another file than its own")
    return manifest


def _decoded(path: Path) -> CheckpointManifest:
    try:
        if path.is_symlink() or path.stat().st_size > MANIFEST_BYTES_MAX:
            raise CheckpointRefusedError("no manifest is a link, or as large")
        data: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointRefusedError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointRefusedError("it is torn: not JSON") from error
    form = data.get("format") if isinstance(data, dict) else None
    if isinstance(form, int) and form > FORMAT:
        raise CheckpointRefusedError(
            f"it has format {form}, this program knows {FORMAT}: a newer one has written it"
        )
    try:
        manifest = decode(CheckpointManifest, data)
        base64.b64decode(manifest.note, validate=True)
    except (SchemaError, ValueError) as error:
        raise CheckpointRefusedError(f"not a manifest: {error}") from error
    return manifest


def verify(checkpoint: Checkpoint) -> None:
    """Read the whole file and compare it with its manifest; about 1 s per GB. Raises CheckpointRefusedError."""
    manifest, path = checkpoint.manifest, checkpoint.file
    digest = hashlib.sha256()
    try:
        if path.is_symlink():
            raise CheckpointRefusedError(f"{path.name} is a link")
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != manifest.byte_count:
                raise CheckpointRefusedError(
                    f"{path.name} has {size} bytes, its manifest says {manifest.byte_count}"
                )
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise CheckpointRefusedError(f"{path.name} cannot be read: {error.strerror}") from error
    if digest.hexdigest() != manifest.sha256:
        raise CheckpointRefusedError(f"{path.name} has another hash than its manifest says")


def to_json(manifest: CheckpointManifest) -> bytes:
    return json.dumps(encode(manifest), indent=1).encode()


def expired(
    checkpoints: list[Checkpoint], *, kept: int, age_max_s: float, now_unix_s: float
) -> list[Checkpoint]:
    """Return what may be deleted: of each part all but the newest `kept`, and what is too old. The newest of all stays.

    So do those that others, who write more rarely, are likely to have as well: for a part that is written at multiples of
    n, the newest multiples of 2n, 4n and 8n (see swarm.state.cadence).
    """
    newest_first = sorted(checkpoints, key=lambda c: c.manifest.order, reverse=True)
    stay = set(newest_first[:1])
    for part in {c.manifest.part for c in checkpoints}:
        of_part = [c for c in newest_first if c.manifest.part == part]
        newest = of_part[:kept]
        interval = max(c.manifest.version & -c.manifest.version for c in newest)
        recent = newest + [
            next((c for c in of_part if c.manifest.version % (interval << k) == 0), newest[0])
            for k in (1, 2, 3)
        ]
        stay |= {c for c in recent if now_unix_s - c.manifest.written_unix_s <= age_max_s}
    return [c for c in newest_first if c not in stay]


def delete(checkpoint: Checkpoint) -> None:
    """Remove one, its manifest first: what is left of it then is no checkpoint. Raises OSError."""
    checkpoint.manifest_file.unlink(missing_ok=True)
    checkpoint.file.unlink(missing_ok=True)
