"""The first frame of a stream: which protocol, which run, and for private runs a proof that the opener holds its key.

Pure functions. What they check is specified in protocols/README.md, section "Handshake".
"""

from __future__ import annotations

import dataclasses
import hmac
from typing import Any, Final, TypeVar

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID, RunID
from protocols.replies import WIRE_VERSION, ErrorReply, Hello, Welcome
from protocols.schema import SchemaError, decode

T = TypeVar("T")
_PROOF_CONTEXT: Final = "murmura hello"


def protocol_of(service: str) -> str:
    """Name the libp2p protocol that a service is spoken on: `stage` is `/murmura/stage/1`."""
    return f"/murmura/{service}/{WIRE_VERSION}"


def prove_run_key(
    run_key: bytes, *, run: RunID, protocol: str, opener: PeerID, server: PeerID
) -> bytes:
    """Return the 32-byte HMAC-SHA256 that shows the opener holds the run key.

    Both PeerIDs and the protocol are inside, so a server that hears a proof cannot use it anywhere else. libp2p has
    authenticated both ends already; a repeated proof on the same pair and protocol says nothing new.
    """
    covered = msgpack.packb([_PROOF_CONTEXT, bytes(run), protocol, bytes(opener), bytes(server)])
    return hmac.digest(run_key, covered, "sha256")


def with_proof(
    hello: Hello, run_key: bytes | None, *, protocol: str, opener: PeerID, server: PeerID
) -> Hello:
    """Return the hello to send to one server on one protocol. Without a run key it is sent as it is."""
    if run_key is None or hello.run is None:
        return hello
    proof = prove_run_key(run_key, run=hello.run, protocol=protocol, opener=opener, server=server)
    return dataclasses.replace(hello, proof=proof)


def check_hello(
    hello: Hello,
    *,
    run: RunID,
    run_key: bytes | None,
    protocol: str,
    opener: PeerID,
    server: PeerID,
) -> ErrorReply | None:
    """Decide whether the opener may use a service of `run`. None accepts; otherwise the refusal to send."""
    if hello.run != run:
        theirs = "no run" if hello.run is None else f"run {hello.run.short}"
        ours = f"run {run.short}" if run_key is None else "a private run"
        return ErrorReply(code="wrong-run", reason=f"this node trains {ours}, not {theirs}")
    if run_key is None:
        return None
    expected = prove_run_key(run_key, run=run, protocol=protocol, opener=opener, server=server)
    if not hmac.compare_digest(expected, hello.proof):
        return ErrorReply(
            code="wrong-key", reason="this run is private: ask its members for a current invite"
        )
    return None


def decode_hello_untrusted(message: Any) -> Hello | ErrorReply:
    """Read the opener's first message. Another wire version is answered with a refusal rather than blamed.

    The version is looked at first, since another version may have keys that this one does not know.
    """
    version = message.get("wire_version") if isinstance(message, dict) else None
    if type(version) is int and version != WIRE_VERSION:
        reason = (
            f"this node speaks wire version {WIRE_VERSION}, not {min(max(version, -1), 1 << 16)}"
        )
        return ErrorReply(code="wrong-version", reason=reason)
    return _decode_untrusted(Hello, message)


def decode_welcome_untrusted(message: Any) -> Welcome:
    """Read the server's answer to a Hello it accepts. Raises RemoteProtocolError only."""
    return _decode_untrusted(Welcome, message)


def decode_error_reply_untrusted(message: Any) -> ErrorReply:
    """Read an ERROR frame's message. Raises RemoteProtocolError only."""
    return _decode_untrusted(ErrorReply, message)


def _decode_untrusted(shape: type[T], message: Any) -> T:
    try:
        return decode(shape, message)
    except SchemaError as error:
        raise RemoteProtocolError(f"a malformed {shape.__name__}: {error}") from error
