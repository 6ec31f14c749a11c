"""What travels over the control socket: a 4-byte little-endian length, then one msgpack map.

    request   {"method": text, "params": {name: scalar}}
    response  {"ok": true, "result": plain data} or {"ok": false, "error": {"code", "reason", "hint"}}

One connection carries any number of requests, one at a time. Standard library and msgpack only: the command line's
client and the daemon's server both import this.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.schema import SchemaError, Size, decode, encode

LENGTH: Final = struct.Struct("<I")
REQUEST_BYTES_MAX: Final = 64 * 1024
"""A request is a name and a few scalars; an invite is the longest of them."""
RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024
"""A status with a thousand peers is about 200 kB."""

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command to the daemon."""

    method: Annotated[str, Size(1, 64)]
    params: Annotated[dict[str, Scalar], Size(0, 32)] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFailure:
    """Why a command was not done."""

    code: Annotated[str, Size(1, 64)]
    """Stable, for scripts: unknown-method, bad-params, not-now, failed, ..."""
    reason: str
    hint: str = ""


def pack_request(request: Request) -> bytes:
    """Return length and body."""
    return _pack(encode(request))


def pack_result(result: Any) -> bytes:
    """Return a response that says the command was done."""
    return _pack({"ok": True, "result": result})


def pack_failure(failure: ControlFailure) -> bytes:
    """Return a response that says why it was not."""
    return _pack({"ok": False, "error": encode(failure)})


def body_length_untrusted(raw: bytes, bytes_max: int) -> int:
    """Read the length before a body. Raises RemoteProtocolError when it is over the bound."""
    (length,) = LENGTH.unpack(raw)
    if not 0 < length <= bytes_max:
        raise RemoteProtocolError(f"a control message has 1 to {bytes_max} bytes, not {length}")
    return int(length)


def request_untrusted(body: bytes) -> Request:
    """Decode a request. Raises RemoteProtocolError only."""
    try:
        return decode(Request, unpack_untrusted(body))
    except SchemaError as error:
        raise RemoteProtocolError(f"not a request: {error}") from error


def response_untrusted(body: bytes) -> Any:
    """Return the result, or a ControlFailure. Raises RemoteProtocolError when it is neither."""
    data = unpack_untrusted(body)
    match data:
        case {"ok": True, "result": result}:
            return result
        case {"ok": False, "error": error}:
            try:
                return decode(ControlFailure, error)
            except SchemaError as problem:
                raise RemoteProtocolError(f"not an error reply: {problem}") from problem
    raise RemoteProtocolError("not a response")


def _pack(data: Any) -> bytes:
    body = msgpack.packb(data)
    return LENGTH.pack(len(body)) + bytes(body)
