"""What strangers send is a message, or a RemoteProtocolError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.gossip.messages import (
    Leaving,
    Message,
    ModelOffer,
    OfferWanted,
    Push,
    PushAnswer,
    decode_message_untrusted,
    encode_message,
    signed_bytes,
)
from protocols.ids import RunID
from tests.protocols.gossip.peers import peer

OFFER = ModelOffer(1, 2, b"l" * 32, 30, 4, b"r" * 32, b"s" * 64)


@pytest.mark.parametrize(
    "message",
    [Push(1, 2, 3, b"l" * 32, 40, 5), PushAnswer("taken"), OfferWanted(), OFFER, Leaving()],
)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode_message_untrusted(encode_message(message)) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [("part", 100), ("part", -1), ("layout", b"short"), ("sequence", -1), ("epoch", 2**64)],
)
def test_a_push_out_of_bounds_is_refused(field: str, value: object) -> None:
    plain = encode_message(Push(1, 2, 3, b"l" * 32, 40, 5))
    plain["body"][field] = value
    with pytest.raises(RemoteProtocolError):
        decode_message_untrusted(plain)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    try:
        decode_message_untrusted(unpack_untrusted(raw))
    except RemoteProtocolError:
        return


def test_a_signature_covers_the_run_the_peer_and_every_field() -> None:
    run, other_run = RunID(b"1" * 32), RunID(b"2" * 32)
    base = signed_bytes(run, peer(1), OFFER)
    others = [
        signed_bytes(other_run, peer(1), OFFER),
        signed_bytes(run, peer(2), OFFER),
        *(
            signed_bytes(run, peer(1), ModelOffer(*fields, b"s" * 64))
            for fields in (
                (2, 2, b"l" * 32, 30, 4, b"r" * 32),
                (1, 3, b"l" * 32, 30, 4, b"r" * 32),
                (1, 2, b"m" * 32, 30, 4, b"r" * 32),
                (1, 2, b"l" * 32, 31, 4, b"r" * 32),
                (1, 2, b"l" * 32, 30, 5, b"r" * 32),
                (1, 2, b"l" * 32, 30, 4, b"q" * 32),
            )
        ),
    ]
    assert len({base, *others}) == 1 + len(others)
