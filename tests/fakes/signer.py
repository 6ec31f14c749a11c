"""A Signer with a key made from a number: the same seed is the same peer in every run."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocols.ids import PeerID


class SeededSigner:
    """Implements protocols.ports.Signer. Never for real nodes: anybody can guess the key."""

    def __init__(self, seed: int) -> None:
        secret = hashlib.sha256(b"murmura test signer %d" % seed).digest()
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self._peer_id = PeerID.from_ed25519(self._key.public_key().public_bytes_raw())

    @property
    def peer_id(self) -> PeerID:
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)
