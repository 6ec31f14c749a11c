"""The directory record: what one peer states about itself under one key, signed, for a short time.

Rules of this file:
- The sub-key a record is stored under is its owner's PeerID, and the PeerID contains the public key, so anybody can
  check any record with nothing but the record and where it was found.
- The signature also covers the hash of the key, which is all that a storing node knows of it: a record cannot be
  moved to another key, and the name of a key is known only to those who look it up.
- An owner's later statement has the higher sequence number *and* the later expiry. Readers order by the first; the
  DHT, which lets the later expiry win, then agrees with them. `Author` keeps that promise.
- The order of the checks is the order of their cost; each refusal has a name, so that it can be counted.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgpack

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID, RunID
from protocols.ports import DirectoryRecord, Signer, VerifySignature
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

VALUE_BYTES_MAX: Final = 4096
"""A statement is a few addresses and numbers; what is larger is fetched from the peer itself."""
RECORD_BYTES_MAX: Final = VALUE_BYTES_MAX + 512
"""Value, PeerID, signature and times, with room to spare."""
KEY_CHARACTERS_MAX: Final = 256
LIFETIME_S_MAX: Final = 600.0
"""A dead peer is listed no longer than this, whatever it wished."""
HORIZON_S: Final = LIFETIME_S_MAX + 10.0
"""The furthest expiry that is accepted. The margin lets `Author` push a statement just past its predecessor."""
SKEW_S_MAX: Final = 3.0
"""How far two clocks may differ, as in hivemind's DHT; more shows in `status` and makes records be refused."""
_CONTEXT: Final = "murmura/directory/1"
_STEP_S: Final = 0.001
"""By how much a statement must outlive the one it replaces: above the resolution of a double that holds unix time."""


class Refusal(enum.StrEnum):
    """Why a record was not accepted."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    """Not the shape of a record, or stored in a way records never are."""
    FOREIGN = "foreign"
    """Filed under a sub-key that is not its owner's PeerID."""
    EXPIRED = "expired"
    TOO_FAR = "too-far"
    """It would expire beyond the horizon, or was issued in the future: a clock is wrong or somebody hoards."""
    FORGED = "forged"
    """The owner did not sign this, or not for this key."""
    SUPERSEDED = "superseded"
    """The owner has since said something newer."""
    FULL = "full"
    """A storing node has given this owner, this key, or all of them together, as much room as it gives."""
    TOO_OFTEN = "too-often"
    """The peer that asked for it has made the storing node check as many records as it may."""


class RecordRefusedError(RemoteProtocolError):
    """A record that is dropped and counted under `refusal`."""

    def __init__(self, refusal: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The content of a record. A value of None says that the owner has left."""

    owner: PeerID
    value: Annotated[bytes, Size(0, RECORD_BYTES_MAX)] | None
    issued_s: Annotated[float, Range(0.0, 1e11)]
    """Unix seconds by the owner's clock."""
    expires_s: Annotated[float, Range(0.0, 1e11)]
    sequence: Natural

    def supersedes(self, other: Statement) -> bool:
        """True when this is the owner's later word."""
        return (self.sequence, self.expires_s) > (other.sequence, other.expires_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The wire form: a statement and its signature."""

    statement: Statement
    signature: Annotated[bytes, Size(64, 64)]


def run_key(run: RunID, topic: str) -> str:
    """Name a key of one run. Every key that speaks of a run starts with its id, so runs cannot be mixed up."""
    return f"{run}/{topic}"


def key_digest(key: str) -> bytes:
    """Return the 20 bytes that stand for a key in the DHT.

    SHA-1 because it is Kademlia's, and hivemind's, identifier. A signature stays safe with it: to move a record, an
    attacker needs a second preimage, and keys are named by the protocol, not by the attacker.
    """
    if not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise LocalProtocolError(
            f"a directory key has 1 to {KEY_CHARACTERS_MAX} characters, not {len(key)}"
        )
    return hashlib.sha1(key.encode()).digest()


def seal(signer: Signer, digest: bytes, statement: Statement) -> bytes:
    """Sign a statement for the key with this digest. Raises LocalProtocolError when readers would refuse it."""
    if statement.owner != signer.peer_id:
        raise LocalProtocolError("a statement can only be sealed by its owner")
    if statement.value is not None and len(statement.value) > VALUE_BYTES_MAX:
        raise LocalProtocolError(
            f"a directory value has at most {VALUE_BYTES_MAX} bytes, not {len(statement.value)}"
        )
    if not 0.0 < statement.expires_s - statement.issued_s <= HORIZON_S:
        raise LocalProtocolError(f"a record expires within {HORIZON_S:.0f} s after it was issued")
    signature = signer.sign(_signed_bytes(digest, statement))
    return _pack(encode(_Record(statement=statement, signature=signature)))


def open_record_untrusted(
    raw: bytes, *, digest: bytes, owner: bytes, now_s: float, verify: VerifySignature
) -> Statement:
    """Check a record found under a key's digest and an owner's sub-key. Raises RecordRefusedError only.

    Args:
      digest: 20 bytes, `key_digest` of the key it was found under.
      owner: the sub-key it was found under, as raw bytes that may not be a PeerID at all.
      now_s: unix seconds by our clock.
    """
    if len(raw) > RECORD_BYTES_MAX:
        raise RecordRefusedError(
            Refusal.TOO_LARGE, f"a record of {len(raw)} bytes; at most {RECORD_BYTES_MAX}"
        )
    try:
        record = decode(_Record, unpack_untrusted(raw))
    except (RemoteProtocolError, SchemaError) as error:
        raise RecordRefusedError(Refusal.MALFORMED, "not a directory record") from error
    statement = record.statement
    _check_bounds(statement, owner, now_s)
    if not verify(statement.owner, _signed_bytes(digest, statement), record.signature):
        raise RecordRefusedError(
            Refusal.FORGED, "a record that its owner did not sign for this key"
        )
    return statement


def live_records(statements: Iterable[Statement], now_s: float) -> Sequence[DirectoryRecord]:
    """Return what a reader sees: for each owner its newest word, unless it has left or the word has expired."""
    newest: dict[PeerID, Statement] = {}
    for statement in statements:
        known = newest.get(statement.owner)
        if known is None or statement.supersedes(known):
            newest[statement.owner] = statement
    return [
        DirectoryRecord(statement.owner, statement.value, statement.expires_s, statement.issued_s)
        for _, statement in sorted(newest.items())
        if statement.value is not None and statement.expires_s > now_s
    ]


class Author:
    """Writes one peer's records, so that each later one wins everywhere. One per node."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._last: dict[str, Statement] = {}

    def announce(
        self, key: str, value: bytes, *, now_s: float, lifetime_s: float
    ) -> tuple[Statement, bytes]:
        """Return the statement and its sealed record. Raises LocalProtocolError on a value or lifetime out of bounds."""
        if not 0.0 < lifetime_s <= LIFETIME_S_MAX:
            raise LocalProtocolError(
                f"a record lives up to {LIFETIME_S_MAX:.0f} s, not {lifetime_s}"
            )
        return self._state(key, value, now_s, expires_s=now_s + lifetime_s)

    def withdraw(self, key: str, *, now_s: float) -> tuple[Statement, bytes] | None:
        """Return the record that says we left, or None when nothing of ours can be listed under the key any more."""
        last = self._last.get(key)
        if last is None or last.value is None or last.expires_s <= now_s:
            return None
        return self._state(key, None, now_s, expires_s=last.expires_s)

    def _state(
        self, key: str, value: bytes | None, now_s: float, *, expires_s: float
    ) -> tuple[Statement, bytes]:
        self._forget_expired(now_s)
        sequence = int(
            now_s * 1000
        )  # milliseconds, so that a restarted node goes on above what it said before
        last = self._last.get(key)
        if last is not None:
            sequence = max(sequence, last.sequence + 1)
            expires_s = max(expires_s, last.expires_s + _STEP_S)
        statement = Statement(
            owner=self._signer.peer_id,
            value=value,
            issued_s=now_s,
            expires_s=expires_s,
            sequence=sequence,
        )
        raw = seal(self._signer, key_digest(key), statement)
        self._last[key] = statement
        return statement, raw

    def _forget_expired(self, now_s: float) -> None:
        """Nobody can still hold an expired record, so nothing has to be outdone any more."""
        for key in [key for key, statement in self._last.items() if statement.expires_s <= now_s]:
            del self._last[key]


def _check_bounds(statement: Statement, owner: bytes, now_s: float) -> None:
    """Everything about a statement that costs nothing to check."""
    if statement.value is not None and len(statement.value) > VALUE_BYTES_MAX:
        raise RecordRefusedError(Refusal.TOO_LARGE, f"a value of {len(statement.value)} bytes")
    if statement.owner != owner:
        raise RecordRefusedError(Refusal.FOREIGN, "a record filed under somebody else's sub-key")
    if statement.expires_s <= statement.issued_s:
        raise RecordRefusedError(Refusal.MALFORMED, "a record that expires before it is issued")
    if statement.expires_s <= now_s:
        raise RecordRefusedError(Refusal.EXPIRED, "a record that has expired")
    lifetime_s = statement.expires_s - statement.issued_s
    if lifetime_s > HORIZON_S or statement.issued_s > now_s + SKEW_S_MAX:
        raise RecordRefusedError(
            Refusal.TOO_FAR, f"a record that expires more than {HORIZON_S:.0f} s ahead"
        )


def _signed_bytes(digest: bytes, statement: Statement) -> bytes:
    """What the signature covers: protocol and version, key, and every field, in one unambiguous encoding."""
    return _pack([_CONTEXT, digest, encode(statement)])


def _pack(data: Any) -> bytes:
    return bytes(msgpack.packb(data))
