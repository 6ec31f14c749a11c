"""The identity file: made once, kept private, and refused when it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import ConfigError, PermissionRefusedError
from node.identity import Identity, verify_signature
from protocols.ids import PeerID


def test_an_identity_is_made_once_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    made = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer_id == made.peer_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path], "no draft is left behind"


def test_making_an_identity_never_overwrites_one(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    made = Identity.create(path)
    with pytest.raises(FileExistsError):
        Identity.create(path)
    assert Identity.load(path).peer_id == made.peer_id


def test_the_file_is_what_libp2p_reads(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / "identity.key")
    raw = (tmp_path / "identity.key").read_bytes()
    assert raw[:4] == bytes(
        [0x08, 1, 0x12, 64]
    )  # key type Ed25519; 64 bytes: seed, then public key
    assert raw[36:] == identity.peer_id.ed25519_public_key()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_command_that_helps(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    path.chmod(mode)
    with pytest.raises(PermissionRefusedError, match=f"chmod 600 {path}"):
        Identity.load_or_create(path)


@pytest.mark.parametrize(
    "raw",
    [b"", b"x" * 68, bytes.fromhex("08011240") + bytes(63), bytes.fromhex("08011240") + bytes(65)],
)
def test_what_is_no_identity_is_refused_and_left_alone(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(raw)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an Ed25519 identity"):
        Identity.load_or_create(path)
    assert path.read_bytes() == raw


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="damaged"):
        Identity.load(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermissionRefusedError, match="missing"):
        Identity.load_or_create(tmp_path / "missing" / "identity.key")


def test_a_signature_holds_for_its_signer_and_message_only(tmp_path: Path) -> None:
    ours, other = Identity(bytes(32)), Identity(bytes(range(32)))
    signature = ours.sign(b"message")
    assert len(signature) == 64
    assert verify_signature(ours.peer_id, b"message", signature)
    assert not verify_signature(other.peer_id, b"message", signature)
    assert not verify_signature(ours.peer_id, b"another", signature)
    assert not verify_signature(ours.peer_id, b"message", signature[:-1])
    assert not verify_signature(PeerID(b"not an Ed25519 id"), b"message", signature)


def test_identity_needs_none_of_the_heavy_libraries() -> None:
    code = "import sys, node.identity; print([m for m in ('torch', 'hivemind', 'libp2p', 'trio', 'google.protobuf') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
