"""Which run: worked out from settings, invite and what was kept; contradictions are named."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from node.errors import ConfigError, PermissionRefusedError
from node.membership import REMEMBERED_MAX, Membership
from protocols.errors import RemoteProtocolError
from protocols.invite import Invite, invite_from_text
from tests.fakes.signer import SeededSigner
from tests.node.nodes import RUN_TOML, make_startup

PEER = SeededSigner(1).peer_id
FAR = f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}"
LOOPBACK = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"


def membership(folder: Path, **flags: Any) -> Membership:
    return make_startup(folder / "state", **flags).membership


def run_file(folder: Path, text: str = RUN_TOML) -> str:
    path = folder / "run.toml"
    path.write_text(text)
    return str(path)


def test_without_a_run_the_person_is_told_both_ways_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--join INVITE.*--run FILE"):
        membership(tmp_path)


def test_a_run_file_without_anybody_to_ask_starts_a_swarm(tmp_path: Path) -> None:
    found = membership(tmp_path, run=run_file(tmp_path))
    assert found.first
    assert found.spec is not None
    assert found.run_key is None


def test_remembered_peers_make_a_restart_a_return(tmp_path: Path) -> None:
    """Or else the restarted first node would found a second swarm beside its own."""
    path = run_file(tmp_path)
    membership(tmp_path, run=path).remember(FAR)
    again = membership(tmp_path, run=path)
    assert not again.first
    assert again.targets(SeededSigner(2).peer_id) == [FAR]
    assert again.targets(PEER) == []  # never ourselves
    assert membership(tmp_path, run=path, new_swarm=True).first


def test_an_invite_and_a_run_file_must_name_one_run(tmp_path: Path) -> None:
    invite = membership(tmp_path, run=run_file(tmp_path)).invite([FAR]).to_text()
    other = run_file(tmp_path, "seed = 9\n" + RUN_TOML)
    with pytest.raises(ConfigError, match="leave one of --run and --join away"):
        membership(tmp_path, run=other, join=invite)


def test_a_mistyped_invite_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)--join: .*checksum.*murmura invite"):
        membership(tmp_path, join="murmura1abcdefgh")


def test_a_private_run_makes_a_key_once_and_its_invite_carries_it(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    found = membership(tmp_path, run=path, private=True)
    key = found.run_key
    assert key is not None
    assert membership(tmp_path, run=path).run_key == key  # kept, also without the flag
    assert stat.S_IMODE((found.folder / "key").stat().st_mode) == 0o600
    invite = invite_from_text(found.invite([FAR]).to_text())
    other = make_startup(tmp_path / "other", join=invite.to_text()).membership
    assert other.run_key == key


def test_a_damaged_key_is_an_error_and_not_a_public_run(tmp_path: Path) -> None:
    path = run_file(tmp_path)
    (membership(tmp_path, run=path, private=True).folder / "key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="is not a run key"):
        membership(tmp_path, run=path)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x93\x01\x02\x03"])
def test_damaged_memories_cost_only_the_memory(tmp_path: Path, damage: bytes) -> None:
    path = run_file(tmp_path)
    found = membership(tmp_path, run=path)
    found.remember(FAR)
    invite = found.invite([FAR]).to_text()
    (found.folder / "peers.msgpack").write_bytes(damage)
    (found.folder / "run.msgpack").write_bytes(damage)
    again = membership(tmp_path, join=invite)
    assert again.remembered == []
    assert again.spec is None  # fetched again


def test_a_run_from_a_peer_is_kept_only_when_its_hash_is_right(tmp_path: Path) -> None:
    found = membership(tmp_path, run=run_file(tmp_path))
    assert found.spec is not None
    raw = found.spec.canonical_bytes()
    with pytest.raises(RemoteProtocolError):
        found.learn(raw + b"x")
    assert found.learn(raw) == found.spec


def test_the_latest_peer_is_remembered_first_and_the_list_is_bounded(tmp_path: Path) -> None:
    found = membership(tmp_path, run=run_file(tmp_path))
    for seed in range(REMEMBERED_MAX + 5):
        found.remember(f"/ip4/203.0.113.7/tcp/4001/p2p/{SeededSigner(seed).peer_id}")
    found.remember(found.remembered[3])
    assert len(found.remembered) == REMEMBERED_MAX
    assert len(set(found.remembered)) == REMEMBERED_MAX


def test_an_invite_prefers_addresses_that_others_can_reach(tmp_path: Path) -> None:
    found = membership(tmp_path, run=run_file(tmp_path))
    assert found.invite([LOOPBACK, FAR]).addresses == (FAR,)
    assert found.invite([LOOPBACK]).addresses == (LOOPBACK,)
    assert isinstance(found.invite([]), Invite)


def test_a_full_disk_costs_only_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = membership(tmp_path, run=run_file(tmp_path))
    assert found.spec is not None

    def full(path: Path, data: bytes) -> None:
        raise PermissionRefusedError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("node.membership.write_atomically", full)
    found.remember(FAR)
    assert found.targets(SeededSigner(2).peer_id) == [FAR]
    assert found.learn(found.spec.canonical_bytes()) == found.spec
    assert "not kept for the next start: cannot write" in caplog.text


def test_an_invite_without_an_address_is_said_to_lead_to_nobody(tmp_path: Path) -> None:
    made = membership(tmp_path / "a", run=run_file(tmp_path)).invite([]).to_text()
    with pytest.raises(ConfigError, match="names no address"):
        membership(tmp_path / "b", join=made)
    assert membership(tmp_path / "c", join=made, bootstrap=(FAR,)).addresses == (FAR,)
