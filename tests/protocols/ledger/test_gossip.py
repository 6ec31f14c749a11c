"""Rumours: what is spread, how often, and who is remembered."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from protocols.ledger.gossip import SPREADERS_MAX, Gossip
from protocols.ledger.messages import Rumour, decode_rumour_untrusted, encode_rumour


def test_nothing_is_spread_while_the_members_stay_as_they_are() -> None:
    assert Gossip(1.0).due(100.0) is None


def test_a_change_is_spread_once() -> None:
    gossip = Gossip(1.0)
    gossip.members_changed(7)
    assert gossip.due(0.0) == Rumour(7)
    assert gossip.due(100.0) is None


def test_of_changes_in_a_row_the_last_is_spread_when_the_pause_is_over() -> None:
    gossip = Gossip(1.0)
    gossip.members_changed(7)
    gossip.due(0.0)
    gossip.members_changed(8)
    gossip.members_changed(9)
    assert gossip.due(0.5) is None
    assert gossip.due(1.0) == Rumour(9)


def test_the_newest_spreaders_are_remembered() -> None:
    gossip = Gossip(1.0)
    peers = [PeerID(b"spreader%02d" % number) for number in range(SPREADERS_MAX + 3)]
    for peer in peers:
        gossip.remember(peer)
    gossip.remember(peers[-3])
    assert len(gossip.spreaders) == SPREADERS_MAX
    assert gossip.spreaders[:3] == (peers[-3], peers[-1], peers[-2])


def test_a_rumour_survives_the_wire() -> None:
    assert decode_rumour_untrusted(encode_rumour(Rumour(2**30))) == Rumour(2**30)


@pytest.mark.parametrize(
    "data",
    [{"index": -1}, {"index": 2**40}, {"index": "7"}, {}, {"index": 1, "more": 2}, [1], b"x" * 100],
)
def test_what_is_no_rumour_blames_the_sender(data: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_rumour_untrusted(bytes(msgpack.packb(data)))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_rumour_or_blame_the_sender(raw: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode_rumour_untrusted(raw), Rumour)
