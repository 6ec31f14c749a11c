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
_BYTES_PER_VALUE: Final = 4
"""On average beyond that, so that a header costs little more than some 40 times its bytes. Records have 10."""


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


def unpack_untrusted(raw: bytes | bytearray | memoryview, *, values_max: int = VALUES_MAX) -> Any:
    """Decode one msgpack value. Raises RemoteProtocolError only.

    Containers and strings cannot be larger than the input, which bounds little: an empty map is one byte on the wire
    and 72 in memory, and an array takes its room as soon as it says its size. So the values are counted first.

    Args:
      values_max: keys, values and elements, containers included.
    """
    if len(raw) > min(_UNCOUNTED_BYTES_MAX, values_max):
        for_its_size = _UNCOUNTED_BYTES_MAX + len(raw) // _BYTES_PER_VALUE
        _count_untrusted(bytes(raw), min(values_max, for_its_size))
    try:
        return msgpack.unpackb(raw, strict_map_key=False, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException, TypeError, RecursionError) as error:
        raise RemoteProtocolError("not valid msgpack") from error


def number_untrusted(raw: bytes, key: str) -> int | None:
    """Read a whole number, 0 or more, from a packed map that a peer says of itself; None where it says none."""
    try:
        number = unpack_untrusted(raw).get(key)
    except (RemoteProtocolError, AttributeError):
        return None
    return number if type(number) is int and number >= 0 else None


def _count_untrusted(raw: bytes, values_max: int) -> None:
    """Refuse what holds, or says it will hold, more than `values_max` values, without making any of them.

    Every round of the loop passes one value, so its time is bounded by `values_max` too. Whether the values make sense
    is left to the decoder.
    """
    known = 1  # values passed, and those that the containers passed so far say are to come
    passed = 0
    offset = 0
    try:
        while passed < known:
            passed += 1
            code = raw[offset]
            offset += 1
            if code < 0x80 or code >= 0xE0:  # a small integer
                continue
            fixed, length_bytes, per_length = _LAYOUT[code]
            length = fixed
            if length_bytes:
                length = int.from_bytes(raw[offset : offset + length_bytes], "big")
                offset += length_bytes + fixed
            if per_length:
                known += per_length * length
                if known > values_max:
                    raise RemoteProtocolError(f"more than {values_max} values in one message")
            else:
                offset += length
    except IndexError as error:
        raise RemoteProtocolError("not valid msgpack") from error


def _layout_of_msgpack() -> dict[int, tuple[int, int, int]]:
    """Return first byte -> (fixed length, bytes that hold a length, values per unit of length; 0 for plain bytes).

    With bytes that hold a length, the fixed length comes on top of it, for the type byte of an extension.
    """
    layout = {code: (code & 0x0F, 0, 2) for code in range(0x80, 0x90)}  # small maps
    layout |= {code: (code & 0x0F, 0, 1) for code in range(0x90, 0xA0)}  # small arrays
    layout |= {code: (code & 0x1F, 0, 0) for code in range(0xA0, 0xC0)}  # short text
    layout |= dict.fromkeys(range(0xC0, 0xC4), (0, 0, 0))  # nil, unused, false, true
    for exponent in range(3):
        layout[0xC4 + exponent] = (0, 1 << exponent, 0)  # bytes
        layout[0xC7 + exponent] = (1, 1 << exponent, 0)  # extensions
        layout[0xD9 + exponent] = (0, 1 << exponent, 0)  # text
    layout |= {0xCA: (4, 0, 0), 0xCB: (8, 0, 0)}  # floats
    for exponent in range(4):
        layout[0xCC + exponent] = layout[0xD0 + exponent] = (1 << exponent, 0, 0)  # integers
    layout |= {0xD4 + exponent: (1 + (1 << exponent), 0, 0) for exponent in range(5)}  # extensions
    layout |= {0xDC: (0, 2, 1), 0xDD: (0, 4, 1), 0xDE: (0, 2, 2), 0xDF: (0, 4, 2)}
    return layout


_LAYOUT: Final = _layout_of_msgpack()


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
