"""What a snapshot consists of: its tensors, and the hash of every chunk of its bytes. No torch here.

A snapshot's bytes are its tensors' bytes, little-endian and in C order, one after the other in the order of the
manifest (sorted by name), cut in chunks of `chunk_bytes`; the last chunk may be shorter. The manifest's hash, the
root, stands for all of it: who knows the root needs to trust nobody for the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import DTYPE_BYTES, TensorSpec, unpack_untrusted
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode
from protocols.state_calls import PartName

CHUNK_BYTES: Final = 1024 * 1024
"""One chunk takes a second at 8 Mbit/s: small enough to change donors without losing much."""
CHUNKS_MAX: Final = 1 << 20
SMALL_CHUNK_BYTES: Final = 64 * 1024
SMALL_CHUNKS_MAX: Final = 64
"""Of chunks smaller than that. Each is a call: a state cut into single bytes would never be fetched."""
TENSORS_MAX: Final = 1 << 16
MANIFEST_BYTES_MAX: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NamedSpec:
    """One tensor of a snapshot."""

    name: Annotated[str, Size(1, 256)]
    dtype: Annotated[str, Size(1, 16)]
    shape: Annotated[tuple[Natural, ...], Size(0, 8)]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise SchemaError("dtype", f"must be one of {', '.join(DTYPE_BYTES)}")

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The table of contents of one part's state at one version."""

    part: PartName
    version: Natural
    """Optimizer steps applied, or whatever else the part counts."""
    tensors: Annotated[tuple[NamedSpec, ...], Size(0, TENSORS_MAX)]
    chunk_bytes: Annotated[int, Range(1, 64 * 1024 * 1024)]
    chunks: Annotated[tuple[Annotated[bytes, Size(32, 32)], ...], Size(0, CHUNKS_MAX)]
    """SHA-256 of each."""

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if names != sorted(set(names)):
            raise SchemaError("tensors", "must be sorted by name, each name once")
        if len(self.chunks) != -(-self.byte_count // self.chunk_bytes):
            raise SchemaError("chunks", "must cover the tensors' bytes, no more")

    @property
    def byte_count(self) -> int:
        return sum(tensor.spec.byte_count for tensor in self.tensors)

    @property
    def root(self) -> bytes:
        """SHA-256 of `to_bytes`: what peers commit to or sign."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        return bytes(msgpack.packb(encode(self)))

    def chunk_range(self, index: int) -> range:
        """Return which of the snapshot's bytes chunk `index` holds."""
        start = index * self.chunk_bytes
        return range(start, min(start + self.chunk_bytes, self.byte_count))


def manifest_untrusted(raw: bytes | memoryview, root: bytes) -> Manifest:
    """Decode a manifest that a donor sent. Raises RemoteProtocolError when it is not the one with this root."""
    if len(raw) > MANIFEST_BYTES_MAX or hashlib.sha256(raw).digest() != root:
        raise RemoteProtocolError(
            "these bytes are not the manifest that was asked for: their hash differs"
        )
    try:
        manifest = decode(Manifest, unpack_untrusted(raw))
    except SchemaError as error:
        raise RemoteProtocolError(f"not a manifest: {error}") from error
    if manifest.chunk_bytes < SMALL_CHUNK_BYTES and len(manifest.chunks) > SMALL_CHUNKS_MAX:
        raise RemoteProtocolError(f"not a manifest: chunks of {manifest.chunk_bytes} bytes")
    return manifest


def check_tensors_untrusted(manifest: Manifest, expected: dict[str, TensorSpec]) -> None:
    """Check that a snapshot has exactly the tensors this part needs, before anything is allocated for it.

    Raises RemoteProtocolError only.
    """
    found = {tensor.name: tensor.spec for tensor in manifest.tensors}
    if found.keys() != expected.keys():
        raise RemoteProtocolError(
            f"the snapshot has other tensors ({len(found)}) than this part ({len(expected)})"
        )
    for name, spec in expected.items():
        if found[name] != spec:
            raise RemoteProtocolError(
                f"the snapshot's {name} is {found[name].dtype} of shape {list(found[name].shape)}; "
                f"this part needs {spec.dtype} of shape {list(spec.shape)}"
            )
