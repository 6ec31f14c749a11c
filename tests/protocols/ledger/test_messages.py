"""The wire form of what members and trainers tell each other."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Evaluated,
    Heartbeat,
    HeldState,
    JoinWanted,
    Lease,
    Message,
    Prepare,
    Promise,
    Records,
    RecordsWanted,
    Reduce,
    Reduced,
    ReduceStuck,
    Refused,
    TallyReport,
    WorkWanted,
    decode_message_untrusted,
    encode_message,
)
from protocols.ledger.view import Ballot, MemberTally, Record, StageCommit
from tests.protocols.ledger.swarm import members, peer_ids

PEER = peer_ids(1)[0]
BALLOT = Ballot(3, PEER)
HASH = bytes(range(32))
REPORT = TallyReport(4, 2, b"\x0f", synced=False, leaving=True, broken=True)
RECORD = Record(
    index=5, epoch=1, step=2, lead=PEER, members=members((0, 1)), reduced_at=BALLOT,
    tallies=(MemberTally(PEER, b"\x0f"),), stages=(StageCommit(HASH, 2.5, HASH),),
    loss=1.5, held_out_loss=2.5, previous=HASH,
)  # fmt: skip

MESSAGES: list[Message] = [
    Heartbeat(4, HASH, BALLOT, pace=8, stay=True),
    REPORT,
    RecordsWanted(4),
    Records((RECORD,), newest=9, cut=True),
    JoinWanted(2**62, 1, HeldState(1, 2)),
    Prepare(5, BALLOT),
    Promise(5, BALLOT, BALLOT, RECORD, REPORT),
    Reduce(5, BALLOT, 2, (MemberTally(PEER, b"\x0f"),)),
    Reduced(5, BALLOT, HASH, 2.5, 1.5, HASH),
    ReduceStuck(5, BALLOT, PEER),
    Accept(5, BALLOT, RECORD),
    Accepted(5, BALLOT),
    Refused(5, BALLOT, BALLOT, "promised"),
    WorkWanted(2, 4, b"\x0f", 7),
    Lease(4, 2, 7, b"\x0f", fresh=True),
    Evaluated(2, 1, 2.5),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    raw = msgpack.packb(encode_message(message))
    assert decode_message_untrusted(unpack_untrusted(raw)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_that_lacks_anything_blames_the_sender(message: Message) -> None:
    """Whatever key is taken out or put in: an error of the sender, or a message whose key had a default."""
    plain = encode_message(message)
    for key in plain["body"]:
        cut = {"tag": plain["tag"], "body": {k: v for k, v in plain["body"].items() if k != key}}
        decode_or_blame(cut)
    with pytest.raises(RemoteProtocolError):
        decode_message_untrusted({"tag": plain["tag"], "body": plain["body"] | {"more": 1}})


def decode_or_blame(data: Any) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_message_untrusted(data)


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(plain_data)
def test_any_data_decodes_or_blames_the_sender(data: Any) -> None:
    decode_or_blame(data)


@given(st.sampled_from(MESSAGES), st.data())
def test_any_damage_to_a_message_decodes_or_blames_the_sender(
    message: Message, data: st.DataObject
) -> None:
    plain = encode_message(message)
    key = data.draw(st.sampled_from(sorted(plain["body"])))
    decode_or_blame({"tag": plain["tag"], "body": plain["body"] | {key: data.draw(plain_data)}})


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_message_untrusted(unpack_untrusted(raw))


@pytest.mark.parametrize(
    ("tag", "body"),
    [
        ("no such message", {}),
        (7, {}),
        ("evaluated", {"step": 1, "microbatch": 1, "loss": float("nan")}),
        # Two such losses would make a mean that no record can hold.
        ("evaluated", {"step": 1, "microbatch": 1, "loss": 1.7e308}),
        ("evaluated", {"step": -1, "microbatch": 1, "loss": 1.0}),
        ("evaluated", {"step": 2**63, "microbatch": 1, "loss": 1.0}),
        ("work", {"step": 1, "slots": 4097, "holding": b"", "seen": 0}),
        ("work", {"step": 1, "slots": 1, "holding": bytes(8193), "seen": 0}),
        ("heartbeat", {"index": 1, "digest": b"short", "ballot": {"round": 1, "peer": b"peer"}}),
        ("heartbeat", {"index": 1, "digest": HASH, "ballot": {"round": 1, "peer": b""}}),
        ("records", {"records": [{}] * 65}),
    ],
)
def test_values_out_of_bounds_blame_the_sender(tag: Any, body: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_message_untrusted({"tag": tag, "body": body})
