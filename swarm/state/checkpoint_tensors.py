"""The tensors of a checkpoint: written as one safetensors file beside a manifest, and loaded again.

The file is written piece by piece from the tensors' own memory, so it needs no second copy, and neither a write nor a
hash holds the interpreter: the event loop and the compute thread go on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import RunID
from swarm.state.checkpoint import (
    FORMAT,
    TENSORS_SUFFIX,
    Checkpoint,
    CheckpointManifest,
    CheckpointRefusedError,
    folder_name,
    stem_of,
    to_json,
    verify,
)
from swarm.state.files import replacing, write_all
from swarm.state.manifest import NamedSpec
from swarm.state.part import PartFacts
from swarm.tensors.wire import bytes_of, check_finite_untrusted, spec_of

_DTYPES: Final = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""As safetensors calls them."""
_WRITE_BYTES: Final = 4 * 1024 * 1024


def write_checkpoint(
    folder: Path,
    run: RunID,
    part: str,
    version: int,
    tensors: Mapping[str, Tensor],
    facts: PartFacts,
    *,
    now_unix_s: float,
) -> Checkpoint:
    """Write a part's state below `folder`, whole or not at all, on disk before it counts. Raises OSError."""
    place = folder / folder_name(part)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = stem_of(facts.epoch, version)
    specs = {name: spec_of(tensors[name]) for name in sorted(tensors)}
    about = {"run": str(run), "part": part, "version": version}
    with replacing(place / (stem + TENSORS_SUFFIX)) as file:
        byte_count, sha256 = _write_safetensors(file, tensors, specs, about)
    manifest = CheckpointManifest(
        format=FORMAT,
        run=str(run),
        part=part,
        epoch=facts.epoch,
        version=version,
        data_position=version if facts.data_position is None else facts.data_position,
        written_unix_s=now_unix_s,
        file=stem + TENSORS_SUFFIX,
        byte_count=byte_count,
        sha256=sha256,
        tensors=tuple(NamedSpec(name, spec.dtype, spec.shape) for name, spec in specs.items()),
        note=base64.b64encode(facts.note).decode(),
    )
    checkpoint = Checkpoint(place, manifest)
    with replacing(checkpoint.manifest_file) as file:
        write_all(file, to_json(manifest))
    return checkpoint


def _write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    specs: Mapping[str, TensorSpec],
    about: Mapping[str, Any],
) -> tuple[int, str]:
    """Write tensors in the order of `specs`, and return size and SHA-256 of the file."""
    header: dict[str, Any] = {"__metadata__": {"murmura": json.dumps(about, sort_keys=True)}}
    offset = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": _DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.byte_count],
        }
        offset += spec.byte_count
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the data begins at a multiple of 8
    digest = hashlib.sha256()
    written = 0
    pieces = (memoryview(struct.pack("<Q", len(raw)) + raw), *(bytes_of(tensors[n]) for n in specs))
    for view in pieces:
        for start in range(0, len(view), _WRITE_BYTES):
            write_all(file, view[start : start + _WRITE_BYTES])
            digest.update(view[start : start + _WRITE_BYTES])
        written += len(view)
    return written, digest.hexdigest()


def load_checkpoint(
    checkpoint: Checkpoint, expected: Mapping[str, TensorSpec] | None
) -> dict[str, Tensor]:
    """Verify and load one. Raises CheckpointRefusedError.

    Args:
      expected: what the part needs; None takes what the manifest says.
    """
    manifest = checkpoint.manifest
    listed = {tensor.name: tensor.spec for tensor in manifest.tensors}
    if expected is not None and dict(expected) != listed:
        odd = sorted(
            name
            for name in listed.keys() | expected.keys()
            if listed.get(name) != expected.get(name)
        )
        raise CheckpointRefusedError(
            f"its tensors have other names, shapes or dtypes than {manifest.part} needs; the first is {odd[0][:80]!r}"
        )
    verify(checkpoint)
    try:
        tensors = load_file(checkpoint.file)
    except (SafetensorError, OSError) as error:
        raise CheckpointRefusedError(f"not a safetensors file: {error}") from error
    if {name: spec_of(tensor) for name, tensor in tensors.items()} != listed:
        raise CheckpointRefusedError("its file has other tensors than its manifest lists")
    try:
        for name, tensor in tensors.items():
            check_finite_untrusted(tensor, name)
    except RemoteProtocolError as error:
        raise CheckpointRefusedError(str(error)) from error
    return tensors
