"""The state of one part at one version, as bytes that never change, and back.

A snapshot owns a copy, so it can be served for as long as anybody fetches it while training goes on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.frames import DTYPE_BYTES, TensorSpec
from swarm.calls.channel import allocate
from swarm.calls.messages import WireTensor
from swarm.state.manifest import CHUNK_BYTES, Manifest, NamedSpec, check_tensors_untrusted
from swarm.tensors.wire import bytes_of, check_finite_untrusted, from_wire, spec_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A manifest and the bytes it describes, read-only."""

    manifest: Manifest
    data: memoryview

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        part: str,
        version: int,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Snapshot:
        """Copy named tensors into the layout of `swarm.state.manifest` and hash it: about 1 s per GB, not for the loop."""
        names = sorted(tensors)
        specs = {name: spec_of(tensors[name]) for name in names}
        data = _joined([bytes_of(tensors[name]) for name in names])
        manifest = Manifest(
            part=part,
            version=version,
            tensors=tuple(NamedSpec(name, spec.dtype, spec.shape) for name, spec in specs.items()),
            chunk_bytes=chunk_bytes,
            chunks=tuple(_chunk_hashes(data, chunk_bytes)),
        )
        return cls(manifest, data.toreadonly())

    def chunk(self, index: int) -> memoryview:
        """Return the bytes of one chunk, no copy. Raises LocalProtocolError for one that does not exist."""
        if not 0 <= index < len(self.manifest.chunks):
            raise LocalProtocolError(f"there is no chunk {index} of {len(self.manifest.chunks)}")
        span = self.manifest.chunk_range(index)
        return self.data[span.start : span.stop]


def _joined(pieces: Sequence[memoryview]) -> memoryview:
    """Copy the pieces one after the other. torch copies without holding the interpreter, bytes.join would stop the loop."""
    data = torch.empty(sum(piece.nbytes for piece in pieces), dtype=torch.uint8)
    start = 0
    for piece in pieces:
        if piece.nbytes:
            data[start : start + piece.nbytes] = torch.frombuffer(piece, dtype=torch.uint8)
        start += piece.nbytes
    return data.numpy().data


def _chunk_hashes(data: memoryview, chunk_bytes: int) -> list[bytes]:
    count = math.ceil(len(data) / chunk_bytes)
    return [
        hashlib.sha256(data[i * chunk_bytes : (i + 1) * chunk_bytes]).digest() for i in range(count)
    ]


class Restore:
    """A snapshot being received: memory for all of it, filled chunk by chunk."""

    def __init__(self, manifest: Manifest, expected: dict[str, TensorSpec]) -> None:
        """Allocate for a manifest. Raises RemoteProtocolError when it is not of the part we expect.

        Args:
          expected: what the local part needs (`expected_specs`), which also bounds what is allocated.
        """
        check_tensors_untrusted(manifest, expected)
        self.manifest = manifest
        self._data = allocate(manifest.byte_count)

    def chunk(self, index: int) -> memoryview:
        """Return the memory of one chunk: receive into it, or copy to it, then check its hash."""
        span = self.manifest.chunk_range(index)
        return self._data[span.start : span.stop]

    def finish_untrusted(self) -> dict[str, Tensor]:
        """Return the tensors, sharing the received memory. Raises RemoteProtocolError for a value that is not finite.

        Only call it once every chunk had its hash. Then a bad value is not the donor's fault but that of the members
        who committed the state; still nothing of it may reach our weights.
        """
        tensors = {}
        start = 0
        for named in self.manifest.tensors:
            end = start + named.spec.byte_count
            data = self._data[start:end]
            if (
                start % DTYPE_BYTES[named.dtype]
            ):  # behind a tensor of another dtype: not every processor reads that
                data = memoryview(bytearray(data))
            tensor = from_wire(WireTensor(named.spec, data))
            check_finite_untrusted(tensor, f"the snapshot's {named.name}")
            tensors[named.name] = tensor
            start = end
        if "step" in tensors and int(tensors["step"]) != self.manifest.version:
            raise RemoteProtocolError("the snapshot's step is not the one its manifest names")
        return tensors


def expected_specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Describe named tensors, such as the local part's own `snapshot()`."""
    return {name: spec_of(tensor) for name, tensor in tensors.items()}
