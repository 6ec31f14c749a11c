"""Who this node is: one Ed25519 key in a file that only its owner may read.

The file is a libp2p PrivateKey protobuf holding the 64-byte form seed || public key, the one go-libp2p accepts, so
p2pd reads it as it is. Losing the file is losing the PeerID, and with it what peers think of this node.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from node.errors import ConfigError, PermissionRefusedError, file_error
from protocols.ids import PeerID

_FILE_PREFIX: Final = bytes.fromhex("08011240")
"""Protobuf: field 1 (key type) = 1, Ed25519; field 2 (data), 64 bytes."""
_FILE_BYTES: Final = len(_FILE_PREFIX) + 64
_MODE: Final = 0o600


class Identity:
    """Implements protocols.ports.Signer with the node's own key."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._peer_id = PeerID.from_ed25519(self._key.public_key().public_bytes_raw())

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new key and write it to `path`, which must not exist.

        Raises:
          PermissionRefusedError: the folder cannot be written.
          FileExistsError: there is an identity already.
        """
        identity = cls(secrets.token_bytes(32))
        identity._write(path)
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key from `path`.

        Raises:
          PermissionRefusedError: it cannot be read, or somebody else could have read it.
          ConfigError: it is not an identity file.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise file_error(error, f"cannot read the identity file {path}") from error
        try:
            mode = os.fstat(file).st_mode & 0o777
            if mode & 0o077:
                raise PermissionRefusedError(
                    f"the identity file {path} can be read by others (mode {mode:04o})",
                    hint=f"if nobody has copied it, run: chmod {_MODE:o} {path}",
                )
            raw = os.read(file, _FILE_BYTES + 1)
        finally:
            os.close(file)
        return cls._from_file_bytes(raw, path)

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Load the identity, or make one when the file does not exist yet. Raises like both."""
        if not path.exists():
            try:
                return cls.create(path)
            except FileExistsError:
                pass  # another process was faster; its key is the node's
        return cls.load(path)

    @property
    def peer_id(self) -> PeerID:
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @classmethod
    def _from_file_bytes(cls, raw: bytes, path: Path) -> Identity:
        if len(raw) != _FILE_BYTES or not raw.startswith(_FILE_PREFIX):
            raise ConfigError(
                f"{path} is not an Ed25519 identity file", hint="move it away to get a new identity"
            )
        seed, public = raw[4:36], raw[36:]
        identity = cls(seed)
        if identity._peer_id.ed25519_public_key() != public:
            raise ConfigError(f"the identity file {path} is damaged", hint="restore it from a copy")
        return identity

    def _write(self, path: Path) -> None:
        """Write under another name, then link into place: the file is whole or absent, and never overwritten."""
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        raw = _FILE_PREFIX + self._key.private_bytes_raw() + self._peer_id.ed25519_public_key()
        try:
            file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            try:
                os.write(file, raw)
                os.fsync(file)
            finally:
                os.close(file)
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise file_error(error, f"cannot write the identity file {path}") from error
        finally:
            draft.unlink(missing_ok=True)


def verify_signature(peer: PeerID, message: bytes, signature: bytes) -> bool:
    """Check an Ed25519 signature by `peer`. Never raises: what cannot be checked is not valid. 140 microseconds."""
    try:
        Ed25519PublicKey.from_public_bytes(peer.ed25519_public_key()).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
