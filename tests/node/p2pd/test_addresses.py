"""Multiaddrs, and ports that somebody else has."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BusyError, ConfigError
from node.p2pd.addresses import (
    address_to_bytes,
    addresses_from_bytes,
    check_can_listen,
    origin_of,
    split_peer,
    unix_address_bytes,
    with_port_of,
)
from tests.fakes.signer import SeededSigner


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip6/::1/udp/4001/quic-v1",
        "/dns4/example.org/tcp/443",
        f"/ip4/192.0.2.1/tcp/1/p2p/{SeededSigner(1).peer_id}/p2p-circuit",
    ],
)
def test_an_address_survives_its_byte_form(address: str) -> None:
    assert addresses_from_bytes([address_to_bytes(address)]) == [address]


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:4001", "/ip4/300.1.1.1/tcp/1", "/ip4/127.0.0.1/tcp/70000", "/no/such"]
)
def test_what_is_no_address_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a multiaddr"):
        address_to_bytes(text)


@given(st.binary(max_size=60))
def test_any_bytes_of_a_peer_are_an_address_or_left_out(raw: bytes) -> None:
    assert len(addresses_from_bytes([raw])) <= 1


def test_a_unix_address_keeps_the_slash_its_path_begins_with() -> None:
    assert unix_address_bytes(Path("/run/s")) == b"\x90\x03\x06/run/s"


def test_an_address_names_its_peer_last() -> None:
    relay, peer = SeededSigner(1).peer_id, SeededSigner(2).peer_id
    through = f"/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit"
    assert split_peer(f"{through}/p2p/{peer}") == (peer, through)


@pytest.mark.parametrize(
    "address", ["/ip4/127.0.0.1/tcp/1", "/p2p/12D3", "/ip4/127.0.0.1/tcp/1/p2p/not0base58", ""]
)
def test_an_address_without_a_peer_is_a_value_error(address: str) -> None:
    with pytest.raises(ValueError, match=r"p2p|base58|PeerID"):
        split_peer(address)


def test_a_port_once_chosen_is_kept() -> None:
    actual = ["/ip4/127.0.0.1/tcp/41000", "/ip4/127.0.0.1/udp/42000/quic-v1", "/ip6/::1/tcp/43000"]
    assert with_port_of("/ip4/0.0.0.0/tcp/0", actual) == "/ip4/0.0.0.0/tcp/41000"
    assert with_port_of("/ip4/0.0.0.0/udp/0/quic-v1", actual) == "/ip4/0.0.0.0/udp/42000/quic-v1"
    assert with_port_of("/ip6/::/tcp/0", actual) == "/ip6/::/tcp/43000"
    assert with_port_of("/ip4/0.0.0.0/tcp/4001", actual) == "/ip4/0.0.0.0/tcp/4001"
    assert with_port_of("/ip4/0.0.0.0/tcp/0", []) == "/ip4/0.0.0.0/tcp/0"


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(BusyError, match=f"{address}.*in use\n.*--listen"):
            check_can_listen(address)
    check_can_listen(address)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        check_can_listen("/ip4/192.0.2.1/tcp/4001")


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("/ip4/192.0.2.7/tcp/4001", "192.0.2.7"),
        ("/ip6/2001:db8:1:2:3:4:5:6/udp/4001/quic-v1", "2001:db8:1:2::/64"),
        ("/ip6/2001:db8:1:2::9/tcp/1", "2001:db8:1:2::/64"),
        ("/ip6/::ffff:192.0.2.7/tcp/4001", "192.0.2.7"),
        (
            "/ip4/198.51.100.1/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA/p2p-circuit",
            "198.51.100.1",
        ),
    ],
)
def test_where_a_connection_comes_from_is_as_coarse_as_addresses_are_given_out(
    address: str, origin: str
) -> None:
    assert origin_of(address_to_bytes(address)) == origin


def test_where_a_connection_comes_from_may_be_unknown() -> None:
    assert origin_of(b"") == ""
    assert origin_of(b"\xff\xff") == ""
