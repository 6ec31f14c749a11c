from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.experts.messages import (
    REPLICAS_MAX,
    STATED_MAX,
    Backward,
    Forward,
    Keep,
    Message,
    Seen,
    SnapshotOffer,
    Snapshots,
    Stated,
    decode_message_untrusted,
    encode_message,
    signed_bytes,
    statement_bytes,
    statement_untrusted,
    uid_untrusted,
)
from protocols.experts.uid import SIZE_MAX, ExpertUID, Grid, Prefix
from protocols.ids import PeerID, RunID
from protocols.records import VALUE_BYTES_MAX

OFFER = SnapshotOffer("ffn0.3.1", 2, 17, bytes(32), PeerID(b"host"), bytes(64))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
)


@pytest.mark.parametrize(
    "message",
    [
        Forward("ffn0.3.1", 2),
        Backward("a.0", 1, 9),
        Keep(OFFER),
        Snapshots(None),
        Snapshots(OFFER, (Seen(3, OFFER.host),)),
    ],
)
def test_a_message_survives_the_wire(message: Message) -> None:
    packed = msgpack.packb(encode_message(message))
    assert decode_message_untrusted(msgpack.unpackb(packed)) == message


@given(plain)
def test_any_data_decodes_or_blames_the_sender(data: object) -> None:
    for wrapped in (data, {"tag": "forward", "body": data}, {"tag": "keep", "body": data}):
        with pytest.raises(RemoteProtocolError):
            decode_message_untrusted(wrapped)


def test_a_coordinate_that_no_grid_has_blames_its_host() -> None:
    value = msgpack.packb({"experts": [(1, 1), (SIZE_MAX, 1)]})
    with pytest.raises(RemoteProtocolError, match="no grid"):
        statement_untrusted(value)


def test_an_offer_leaves_versions_to_go_on_with() -> None:
    # The next step, and the 64 bits of the wire and of a snapshot, come after the largest that somebody may sign.
    message = encode_message(Keep(OFFER))
    message["body"]["offer"]["version"] = 2**63 - 1
    with pytest.raises(RemoteProtocolError, match="must be 0 to"):
        decode_message_untrusted(message)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_statement_or_blame_the_sender(raw: bytes) -> None:
    try:
        stated = statement_untrusted(raw)
    except RemoteProtocolError:
        return
    assert len(stated) <= STATED_MAX


def test_a_statement_fits_into_a_directory_record_however_many_experts_there_are() -> None:
    lines = [Stated(coordinate, (1 << 53) - 1) for coordinate in range(60_000, 65_536)]
    value = statement_bytes(lines)
    assert len(value) <= VALUE_BYTES_MAX
    assert statement_untrusted(value) == tuple(lines[:STATED_MAX])


@pytest.mark.parametrize(
    "text", ["ffn", "ffn.01", "ffn.-1", "ffn.1.", "3.1", "f f.1", "a.1.1.1.1.1", "a.70000"]
)
def test_what_is_no_expert_blames_the_sender(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        uid_untrusted(text)


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=4))
def test_an_expert_has_one_name(place: list[int]) -> None:
    uid = ExpertUID("ffn", tuple(place))
    assert uid_untrusted(str(uid)) == uid


def test_prefixes_leave_out_the_last_coordinate() -> None:
    assert ExpertUID("f", (3, 1, 2)).prefixes == (Prefix("f", (3,)), Prefix("f", (3, 1)))
    assert ExpertUID("f", (3,)).prefixes == (Prefix("f", ()),)
    grid = Grid("f", (2, 3))
    assert len(grid) == len(list(grid.uids())) == 6
    assert list(grid.prefixes()) == [Prefix("f", (0,)), Prefix("f", (1,))]
    assert ExpertUID("f", (2, 0)) not in grid
    assert ExpertUID("f", (1, 2)) in grid


def test_the_signature_covers_every_field_of_an_offer() -> None:
    run = RunID(bytes(32))
    others = [
        SnapshotOffer("ffn0.3.2", 2, 17, bytes(32), PeerID(b"host"), bytes(64)),
        SnapshotOffer("ffn0.3.1", 3, 17, bytes(32), PeerID(b"host"), bytes(64)),
        SnapshotOffer("ffn0.3.1", 2, 18, bytes(32), PeerID(b"host"), bytes(64)),
        SnapshotOffer("ffn0.3.1", 2, 17, b"x" * 32, PeerID(b"host"), bytes(64)),
        SnapshotOffer("ffn0.3.1", 2, 17, bytes(32), PeerID(b"other"), bytes(64)),
    ]
    signed = {signed_bytes(run, offer) for offer in [OFFER, *others]}
    assert len(signed) == 6
    assert signed_bytes(RunID(b"r" * 32), OFFER) not in signed


def test_a_host_names_the_replicas_of_its_experts_as_far_as_there_is_room() -> None:
    peers = [PeerID(bytes([index]) * 38) for index in range(8)]
    lines = [Stated(3, 7, (peers[0], peers[1])), Stated(5, 9), Stated(8, 2, (peers[2],))]
    assert statement_untrusted(statement_bytes(lines)) == tuple(lines)
    many = [Stated(coordinate, 1, tuple(peers[:2])) for coordinate in range(STATED_MAX)]
    value = statement_bytes(many)
    assert len(value) <= VALUE_BYTES_MAX
    found = statement_untrusted(value)
    assert [line.coordinate for line in found] == list(range(STATED_MAX))
    assert found[0].replicas == tuple(peers[:2]), "every expert comes before any replica"
    assert found[-1].replicas == ()


def test_a_statement_with_too_many_replicas_of_one_expert_counts_for_some_of_them() -> None:
    peers = [bytes([index]) * 38 for index in range(8)]
    value = msgpack.packb({"experts": [(3, 7)], "of": [3] * 9, "replicas": [peers[0], *peers]})
    (line,) = statement_untrusted(value)
    assert line.replicas == tuple(PeerID(peer) for peer in peers[:REPLICAS_MAX])
