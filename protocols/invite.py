"""An invite: the one string a volunteer pastes to join a run.

    murmura1<base58 of: checksum (4 bytes), msgpack [run id, [address, ...], run key]>

The number is the version of this form. The checksum is the head of SHA-256 over prefix and payload: it catches
typing and copying mistakes, it is no signature. An invite to a private run holds its key and is then a secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgpack

from protocols.addresses import ADDRESS_BYTES_MAX, address_problem
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID, RunID, base58_decode, base58_encode

PREFIX: Final = "murmura1"
ADDRESSES_MAX: Final = 8
"""Any one of them is enough to join; eight survive most of them being gone and still fit in a chat message."""
RUN_KEY_BYTES: Final = 32
_QUOTES: Final = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb\ufeff"
"""What chats and shells put around a line."""
TEXT_MAX: Final = 4096
"""Characters; bounds the work of base58, which is quadratic."""
_CHECKSUM_BYTES: Final = 4


class InviteError(ValueError):
    """The text is not an invite. The message says what is wrong with it, never the text itself: it may hold a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """Which run, and where to find somebody who is in it."""

    run: RunID
    addresses: tuple[str, ...] = ()
    """Multiaddrs that end in /p2p/<PeerID>, so that nobody else can answer for the peer."""
    run_key: bytes = b""
    """32 bytes for a private run, empty for a public one."""

    def __post_init__(self) -> None:
        if len(self.addresses) > ADDRESSES_MAX:
            raise InviteError(
                f"an invite holds at most {ADDRESSES_MAX} addresses, not {len(self.addresses)}"
            )
        for address in self.addresses:
            check_address(address)
        if len(self.run_key) not in (0, RUN_KEY_BYTES):
            raise InviteError(f"a run key has {RUN_KEY_BYTES} bytes, not {len(self.run_key)}")

    @property
    def is_secret(self) -> bool:
        return bool(self.run_key)

    def to_text(self) -> str:
        """Return the string to hand on."""
        payload = msgpack.packb([bytes(self.run), list(self.addresses), self.run_key])
        return PREFIX + base58_encode(_checksum(payload) + payload)

    def __repr__(self) -> str:
        """Leave the key out: reprs end up in logs."""
        return f"Invite(run={self.run.short}, addresses={len(self.addresses)}, secret={self.is_secret})"


def invite_from_text(text: str) -> Invite:
    """Read an invite as pasted: quotes and space around it, and line breaks within, are forgiven. Raises InviteError."""
    compact = "".join(text[: TEXT_MAX * 2].split()).strip(_QUOTES)
    if not compact.startswith(PREFIX):
        if compact.startswith("murmura"):
            raise InviteError(
                f"this invite has another version; this node reads invites that start with {PREFIX}"
            )
        raise InviteError(
            f"an invite starts with {PREFIX}; copy the whole line that `murmura invite` prints"
        )
    if len(compact) > TEXT_MAX:
        raise InviteError(f"longer than the {TEXT_MAX} characters an invite can have")
    try:
        raw = base58_decode(compact.removeprefix(PREFIX))
    except ValueError as error:
        raise InviteError(f"{error}: it was mistyped, or something was pasted into it") from error
    checksum, payload = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if _checksum(payload) != checksum:
        raise InviteError(
            "the checksum does not match: the invite was cut short or mistyped; copy it again"
        )
    return _from_payload(payload)


def check_address(address: str) -> PeerID:
    """Return the PeerID a bootstrap address ends in. Raises InviteError when it has none."""
    if not address.startswith("/") or len(address.encode()) > ADDRESS_BYTES_MAX:
        raise InviteError("an address is a multiaddr like /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo...")
    if not address.isprintable() or " " in address:
        raise InviteError("an address has no spaces or control characters")
    parts = address.split("/")
    if len(parts) < 5 or parts[-2] != "p2p":
        raise InviteError(
            "an address must end in /p2p/<PeerID>, so that nobody else can answer for that peer"
        )
    try:
        return PeerID.from_text(parts[-1])
    except ValueError as error:
        raise InviteError(f"the address ends in something that is no PeerID: {error}") from error


def dial_problem(address: str) -> str | None:
    """Say why nobody can be dialled at an address that a person gives; None when it looks right."""
    try:
        check_address(address)
    except InviteError as error:
        return str(error)
    return address_problem(address)


def _from_payload(payload: bytes) -> Invite:
    """Invites come from people, who got them from anybody: a right checksum says nothing about the content."""
    try:
        data = unpack_untrusted(payload)
    except RemoteProtocolError as error:
        raise InviteError("the content is not what an invite holds") from error
    match data:
        case [bytes(run), [*addresses], bytes(run_key)] if all(
            isinstance(a, str) for a in addresses
        ):
            pass
        case _:
            raise InviteError("the content is not what an invite holds")
    try:
        return Invite(run=RunID(run), addresses=tuple(addresses), run_key=run_key)
    except InviteError:
        raise
    except ValueError as error:
        raise InviteError(str(error)) from error


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + payload).digest()[:_CHECKSUM_BYTES]
