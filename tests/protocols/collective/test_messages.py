"""What strangers send is a message, or a RemoteProtocolError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.collective.messages import (
    FragmentStanding,
    Leaving,
    Message,
    Overtaken,
    RoundBegins,
    Standing,
    StandingWanted,
    decode_message_untrusted,
    encode_message,
)
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted

LINE = b"l" * 16
STANDING = Standing(90, (FragmentStanding(60, (LINE, b"k" * 16), 90),))


@pytest.mark.parametrize(
    "message",
    [
        StandingWanted(),
        STANDING,
        Standing(0, ()),
        RoundBegins(3, 90, LINE),
        Overtaken(3, LINE),
        Leaving(),
    ],
)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode_message_untrusted(encode_message(message)) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [("fragment", 256), ("fragment", -1), ("line", b"short"), ("version", -1), ("version", 2**64)],
)
def test_a_call_out_of_bounds_is_refused(field: str, value: object) -> None:
    plain = encode_message(RoundBegins(3, 90, LINE))
    plain["body"][field] = value
    with pytest.raises(RemoteProtocolError):
        decode_message_untrusted(plain)


@pytest.mark.parametrize("lines", [[], [LINE] * 9, [b"x"]])
def test_a_standing_without_or_with_too_much_history_is_refused(lines: list[bytes]) -> None:
    plain = encode_message(STANDING)
    plain["body"]["fragments"][0]["lines"] = lines
    with pytest.raises(RemoteProtocolError):
        decode_message_untrusted(plain)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    try:
        decode_message_untrusted(unpack_untrusted(raw))
    except RemoteProtocolError:
        return
