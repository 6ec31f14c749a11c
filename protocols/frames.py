"""The frame: fixed prefix, msgpack header, raw tensor bytes. The wire form is specified in protocols/README.md.

    offset 0   2 bytes  magic b"mu"
           2   1 byte   frame version, 1
           3   1 byte   kind (FrameKind)
           4   4 bytes  header length, unsigned little-endian
           8   8 bytes  body length, unsigned little-endian
          16            header: a msgpack map {"m": message, "t": [[dtype, shape], ...]}
                        body: the tensors' bytes, C order, little-endian, one after the other

Rules of this file: every size is checked against `Limits` before anything of that size is allocated, the number of
values in a header before any of them is made, and the only error for bad input is RemoteProtocolError.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from protocols.errors import LocalProtocolError, RemoteProtocolError

_PREFIX: Final = struct.Struct("<2sBBIQ")
PREFIX_BYTES: Final = _PREFIX.size
_MAGIC: Final = b"mu"
_VERSION: Final = 1

DTYPE_BYTES: Final = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Every dtype the wire carries, with bytes per element."""

HELLO_HEADER_BYTES_MAX: Final = 4096
"""Whatever the service: a HELLO comes from somebody who has not been let in yet, and an honest one has 300 bytes."""
VALUES_MAX: Final = 1 << 18
"""In one msgpack value. A ledger record of 16,384 members, the largest there is, has 246,000; and no value of a few
bytes costs more than about 250 bytes of memory, so that no header costs more than 64 MiB, whoever made it up."""
_UNCOUNTED_BYTES_MAX: Final = 4096
"""Too few to be worth counting: the worst is 1 MB of small objects, or 32 MB of address space never touched."""


_CONTAINERS_FREE: Final = 1024
_BYTES_PER_CONTAINER: Final = 16
"""The smallest messages in long lists, tallies of a record, have 50 bytes each."""


class FrameKind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    """First in each direction: versions, run, role; or the refusal."""
    REQUEST = 2
    """Asks for exactly one REPLY or ERROR on the same stream."""
    REPLY = 3
    ERROR = 4
    """The request failed; the header says what was wrong and whether a retry makes sense."""
    CAST = 5
    """One-way message: no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may make us allocate with one frame."""

    header_bytes_max: int = 64 * 1024
    """A header is a small message. Only the ledger's records are larger, see `swarm.pipeline.services`."""
    body_bytes_max: int = 256 * 1024 * 1024
    """One microbatch of activations or one averaging part; raise it with the model, not by habit."""
    tensors_max: int = 64
    rank_max: int = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the next bytes of the body are."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first 16 bytes, checked against the limits: it is safe to allocate what it announces."""

    kind: FrameKind
    header_bytes: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The decoded header. `message` is plain data, still to be checked by `schema.decode`."""

    message: Any
    tensors: tuple[TensorSpec, ...]


def encode_frame(kind: FrameKind, message: Any, tensors: Sequence[TensorSpec] = ()) -> bytes:
    """Return prefix and header. The caller sends the tensors' own buffers after it, in the same order.

    Args:
      message: plain data (`schema.encode` of a dataclass).
    """
    for spec in tensors:
        if spec.dtype not in DTYPE_BYTES:
            raise LocalProtocolError(
                f"dtype {spec.dtype} has no wire form; send one of {', '.join(DTYPE_BYTES)}"
            )
    header: bytes = msgpack.packb(
        {"m": message, "t": [[spec.dtype, list(spec.shape)] for spec in tensors]}
    )
    body_bytes = sum(spec.byte_count for spec in tensors)
    return _PREFIX.pack(_MAGIC, _VERSION, kind, len(header), body_bytes) + header


def decode_prefix_untrusted(raw: bytes | bytearray | memoryview, limits: Limits) -> Prefix:
    """Check the first PREFIX_BYTES bytes of a frame. Raises RemoteProtocolError only."""
    if len(raw) != PREFIX_BYTES:
        raise RemoteProtocolError(f"a frame prefix has {PREFIX_BYTES} bytes, not {len(raw)}")
    magic, version, kind, header_bytes, body_bytes = _PREFIX.unpack(raw)
    if magic != _MAGIC:
        raise RemoteProtocolError("not a Murmura frame")
    if version != _VERSION:
        raise RemoteProtocolError(
            f"frame version {version} is not supported; this node speaks {_VERSION}"
        )
    try:
        frame_kind = FrameKind(kind)
    except ValueError as error:
        raise RemoteProtocolError(f"unknown frame kind {kind}") from error
    header_bytes_max = limits.header_bytes_max
    if frame_kind is FrameKind.HELLO:
        header_bytes_max = min(header_bytes_max, HELLO_HEADER_BYTES_MAX)
    if header_bytes > header_bytes_max:
        raise RemoteProtocolError(
            f"header of {header_bytes} bytes is over the limit of {header_bytes_max}"
        )
    if body_bytes > limits.body_bytes_max:
        raise RemoteProtocolError(
            f"body of {body_bytes} bytes is over the limit of {limits.body_bytes_max}"
        )
    return Prefix(frame_kind, header_bytes, body_bytes)


def decode_header_untrusted(
    raw: bytes | bytearray | memoryview, prefix: Prefix, limits: Limits
) -> Header:
    """Decode a header and check that its tensors add up to the announced body. Raises RemoteProtocolError only."""
    data = unpack_untrusted(raw)
    if not isinstance(data, dict) or data.keys() != {"m", "t"} or not isinstance(data["t"], list):
        raise RemoteProtocolError("a frame header is a map of m and t")
    if len(data["t"]) > limits.tensors_max:
        raise RemoteProtocolError(
            f"{len(data['t'])} tensors in one frame; at most {limits.tensors_max} are allowed"
        )
    tensors = tuple(_spec_untrusted(item, limits) for item in data["t"])
    described = sum(spec.byte_count for spec in tensors)
    if described != prefix.body_bytes:
        raise RemoteProtocolError(
            f"tensors of {described} bytes do not fill a body of {prefix.body_bytes}"
        )
    return Header(data["m"], tensors)


def unpack_untrusted(raw: bytes | bytearray | memoryview) -> Any:
    """Decode one msgpack value; containers and strings cannot be larger than the input. Raises RemoteProtocolError.

    An empty container is one byte on the wire and 64 in memory, so there may not be many more than messages have: what is
    decoded is at most some 20 times as large as the input.
    """
    left = _CONTAINERS_FREE + len(raw) // _BYTES_PER_CONTAINER

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("too many containers")
        return container

    try:
        return msgpack.unpackb(
            raw, strict_map_key=False, max_ext_len=0, object_hook=count, list_hook=count
        )
    except (ValueError, msgpack.exceptions.UnpackException, TypeError, RecursionError) as error:
        raise RemoteProtocolError("not valid msgpack") from error


def _spec_untrusted(item: Any, limits: Limits) -> TensorSpec:
    if not isinstance(item, list) or len(item) != 2:
        raise RemoteProtocolError("a tensor is described by its dtype and shape")
    dtype, shape = item
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise RemoteProtocolError("a tensor has an unknown dtype")
    if not isinstance(shape, list) or len(shape) > limits.rank_max:
        raise RemoteProtocolError(
            f"a tensor has more than {limits.rank_max} dimensions, or none at all described"
        )
    for size in shape:
        if type(size) is not int or not 0 <= size <= limits.body_bytes_max:
            raise RemoteProtocolError("a tensor dimension is not a sensible size")
    return TensorSpec(dtype, tuple(shape))
