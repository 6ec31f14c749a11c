"""Names: who a peer is (PeerID) and what is trained (RunID). Where a peer is, is a multiaddr, not here."""

from __future__ import annotations

from typing import Final

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_INDEX: Final = {char: value for value, char in enumerate(_ALPHABET)}

PEER_ID_BYTES_MAX: Final = 64
"""An Ed25519 PeerID has 38 bytes, a hashed RSA one 34; anything longer than this is not a PeerID."""

_ED25519_PREFIX: Final = bytes.fromhex("002408011220")
"""Identity multihash (code 0, 36 bytes) of the libp2p PublicKey protobuf: type Ed25519 (1), 32 bytes."""


def base58_encode(raw: bytes) -> str:
    """Spell bytes in base58 (Bitcoin alphabet), the text form of libp2p PeerIDs."""
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    value = int.from_bytes(raw, "big")
    digits = []
    while value:
        value, digit = divmod(value, 58)
        digits.append(_ALPHABET[digit])
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str) -> bytes:
    """Inverse of `base58_encode`. Raises ValueError on a character outside the alphabet."""
    value = 0
    for char in text:
        if char not in _INDEX:
            raise ValueError(f"{char!r} is not a base58 character")
        value = value * 58 + _INDEX[char]
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + value.to_bytes((value.bit_length() + 7) // 8, "big")


class PeerID(bytes):
    """Who a peer is: the multihash of its public key. Ordered and hashed as bytes, printed in base58."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> PeerID:
        if not 2 <= len(raw) <= PEER_ID_BYTES_MAX:
            raise ValueError(f"a PeerID has 2 to {PEER_ID_BYTES_MAX} bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_text(cls, text: str) -> PeerID:
        """Parse base58. Raises ValueError, with the reason, when it is not a PeerID."""
        return cls(base58_decode(text))

    @classmethod
    def from_ed25519(cls, public_key: bytes) -> PeerID:
        """Name the owner of a 32-byte Ed25519 public key, as libp2p does."""
        if len(public_key) != 32:
            raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
        return cls(_ED25519_PREFIX + public_key)

    def ed25519_public_key(self) -> bytes:
        """Return the key inside the id. Raises ValueError for ids of another key type."""
        if len(self) != 38 or not self.startswith(_ED25519_PREFIX):
            raise ValueError("this PeerID does not contain an Ed25519 key")
        return bytes(self[6:])

    def __str__(self) -> str:
        return base58_encode(self)

    def __repr__(self) -> str:
        return f"PeerID({self})"

    @property
    def short(self) -> str:
        """The last 8 characters: enough to tell peers apart in a table, never an identity."""
        return str(self)[-8:]


class RunID(bytes):
    """What is trained: SHA-256 of the run file's canonical form. 32 bytes, printed in hex."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> RunID:
        if len(raw) != 32:
            raise ValueError(f"a RunID has 32 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_text(cls, text: str) -> RunID:
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"RunID({self})"

    @property
    def short(self) -> str:
        return self.hex()[:8]
