"""Every address that a person gives is looked at before anything starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.addresses import address_problem
from protocols.invite import dial_problem
from tests.fakes.signer import SeededSigner

PEER = SeededSigner(1).peer_id


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/0.0.0.0/tcp/0",
        "/ip4/0.0.0.0/udp/65535/quic-v1",
        "/ip6/::/tcp/4001",
        "/dns4/example.org/tcp/443/wss",
        "/dns/a-b.example/udp/4001/quic-v1",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_what_can_be_listened_on_or_dialled_is_right(address: str) -> None:
    assert address_problem(address) is None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "multiaddr"),
        ("0.0.0.0:4001", "multiaddr"),
        ("/ip4/0.0.0.0/tcp/80000", "'80000' is no port"),
        ("/ip4/0.0.0.0/tcp/-1", "is no port"),
        ("/ip4/0.0.0.0/tcp/4001 ", "no spaces"),
        ("/ip4/0.0.0.0/tcp", "nothing follows /tcp"),
        ("/ip4/0.0.0.0", "what"),
        ("/ip4/256.0.0.1/tcp/1", "no IPv4"),
        ("/ip4/::1/tcp/1", "no IPv4"),
        ("/ip6/0.0.0.0/tcp/1", "no IPv6"),
        ("/ipv4/0.0.0.0/tcp/1", "'ipv4'"),
        ("/ip4/0.0.0.0/tcp/1/", "''"),
        ("/dns4//tcp/1", "no name"),
        ("/ip4/192.0.2.1/tcp/1/p2p/0OIl", "no PeerID"),
        ("/ip4/192.0.2.1/tcp/\u0663", "no spaces or control"),
    ],
)
def test_what_is_wrong_with_it_is_named(address: str, says: str) -> None:
    problem = address_problem(address)
    assert problem is not None
    assert says in problem


def test_whom_to_dial_must_be_named_and_where_must_be_right() -> None:
    assert dial_problem(f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}") is None
    assert "PeerID" in (dial_problem("/ip4/192.0.2.1/tcp/4001") or "")
    assert "is no port" in (dial_problem(f"/ip4/192.0.2.1/tcp/80000/p2p/{PEER}") or "")


@given(st.text(max_size=300))
def test_any_text_gets_an_answer(text: str) -> None:
    address_problem(text)
    address_problem("/" + text)
