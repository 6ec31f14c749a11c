"""The frame: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.frames import (
    DTYPE_BYTES,
    PREFIX_BYTES,
    FrameKind,
    Header,
    Limits,
    Prefix,
    TensorSpec,
    decode_header_untrusted,
    decode_prefix_untrusted,
    encode_frame,
    number_untrusted,
    unpack_untrusted,
)

LIMITS = Limits()
specs = st.builds(
    TensorSpec,
    st.sampled_from(sorted(DTYPE_BYTES)),
    st.lists(st.integers(0, 50), max_size=4).map(tuple),
)
messages = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


def decode(raw: bytes, limits: Limits = LIMITS) -> tuple[Prefix, Header]:
    prefix = decode_prefix_untrusted(raw[:PREFIX_BYTES], limits)
    return prefix, decode_header_untrusted(
        raw[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes], prefix, limits
    )


@given(st.sampled_from(FrameKind), messages, st.lists(specs, max_size=5))
def test_what_is_encoded_is_decoded(
    kind: FrameKind, message: Any, tensors: list[TensorSpec]
) -> None:
    prefix, header = decode(encode_frame(kind, message, tensors))
    assert prefix.kind is kind
    assert header == Header(message, tuple(tensors))
    assert prefix.body_bytes == sum(spec.byte_count for spec in tensors)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_prefix_or_blame_the_sender(raw: bytes) -> None:
    try:
        prefix = decode_prefix_untrusted(raw, LIMITS)
    except RemoteProtocolError:
        return
    assert prefix.header_bytes <= LIMITS.header_bytes_max
    assert prefix.body_bytes <= LIMITS.body_bytes_max


@given(st.binary(max_size=200), st.integers(0, LIMITS.body_bytes_max))
def test_any_bytes_are_a_header_or_blame_the_sender(raw: bytes, body_bytes: int) -> None:
    try:
        header = decode_header_untrusted(
            raw, Prefix(FrameKind.REQUEST, len(raw), body_bytes), LIMITS
        )
    except RemoteProtocolError:
        return
    assert sum(spec.byte_count for spec in header.tensors) == body_bytes


@given(messages, st.lists(specs, max_size=3), st.data())
def test_a_flipped_bit_is_decoded_or_blames_the_sender(
    message: Any, tensors: list[TensorSpec], data: st.DataObject
) -> None:
    raw = bytearray(encode_frame(FrameKind.REQUEST, message, tensors))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        prefix, header = decode(bytes(raw))
    except RemoteProtocolError:
        return
    assert sum(spec.byte_count for spec in header.tensors) == prefix.body_bytes


LONG_ARRAY = b"\xdd\x00\x03\xff\xff"


@pytest.mark.parametrize(
    "raw",
    [
        b"\xdd\x00\x3f\xff\xfb" + b"\x80" * 0x3FFFFB,
        LONG_ARRAY * 1000 + bytes(60_000),
        b"\xdf\x00\x02\x00\x00" + b"\xc0\x90" * 0x20000,
        b"\xdc\xff\xf0" + b"\x80" * 0xFFF0,
    ],
    ids=["empty maps", "arrays that say they are long", "keys", "a short header of maps"],
)
def test_more_values_than_any_message_has_are_refused_before_they_are_made(raw: bytes) -> None:
    """The first took 300 MB, the second 500 MB of address space; the time of either held up the event loop."""
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="values in one message"):
            unpack_untrusted(raw)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_largest_record_there_is_has_fewer_values() -> None:
    peer = bytes(38)
    members = [{"peer": peer, "incarnation": 1, "stage": 0, "since": 1}] * 16384
    record = {"members": members, "tallies": [{"peer": peer, "counted": b""}] * 16384}
    raw = msgpack.packb({**record, "let_go": [peer] * 16384})
    assert len(unpack_untrusted(raw)["members"]) == 16384


@given(messages)
def test_values_are_counted_exactly(message: Any) -> None:
    """A decoder that goes by another layout than the counter would let some through."""
    padded = [message, bytes(8192)]
    raw = msgpack.packb(padded)
    count = _count(padded)
    assert unpack_untrusted(raw, values_max=count) == padded
    with pytest.raises(RemoteProtocolError, match="values in one message"):
        unpack_untrusted(raw, values_max=count - 1)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(_count(key) + _count(item) for key, item in value.items())
    return 1 + (sum(map(_count, value)) if isinstance(value, list) else 0)


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ([["float8", [1]]], "unknown dtype"),
        ([["uint8", [1], 0]], "dtype and shape"),
        ([["uint8", [1] * 9]], "dimensions"),
        ([["uint8", [-1]]], "sensible"),
        ([["uint8", [True]]], "sensible"),
        ([["uint8", [1.0]]], "sensible"),
        ([["uint8", [2**40]]], "sensible"),
        ([["uint8", [2**27, 2**27]]], "do not fill"),
        ([["uint8", [1]]] * 65, "at most 64"),
        ("uint8", "map of m and t"),
    ],
)
def test_a_tensor_that_makes_no_sense_blames_the_sender(described: Any, reason: str) -> None:
    raw = msgpack.packb({"m": None, "t": described})
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_header_untrusted(raw, Prefix(FrameKind.REQUEST, len(raw), 1), LIMITS)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(0, 0, "not a Murmura"), (2, 2, "version 2"), (3, 99, "kind 99")],
)
def test_another_protocol_version_or_kind_says_so(offset: int, value: int, reason: str) -> None:
    raw = bytearray(encode_frame(FrameKind.REQUEST, None)[:PREFIX_BYTES])
    raw[offset] = value
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_prefix_untrusted(raw, LIMITS)


def test_sizes_over_the_limits_are_refused_at_the_prefix() -> None:
    tight = Limits(header_bytes_max=5, body_bytes_max=5)
    with pytest.raises(RemoteProtocolError, match="header of"):
        decode(encode_frame(FrameKind.REQUEST, "too long"), tight)
    with pytest.raises(RemoteProtocolError, match="body of"):
        decode(
            encode_frame(FrameKind.REQUEST, None, [TensorSpec("uint8", (6,))]),
            Limits(body_bytes_max=5),
        )


def test_a_dtype_without_a_wire_form_is_our_own_bug() -> None:
    with pytest.raises(LocalProtocolError, match="complex64"):
        encode_frame(FrameKind.REQUEST, None, [TensorSpec("complex64", (1,))])


def test_the_layout_is_the_one_in_the_specification() -> None:
    raw = encode_frame(FrameKind.REPLY, 1, [TensorSpec("int16", (3,))])
    assert (
        raw.hex()
        == "6d750103" + "10000000" + "0600000000000000" + "82a16d01a17491" + "92a5696e7431369103"
    )


def test_a_number_that_a_peer_says_of_itself() -> None:
    assert number_untrusted(msgpack.packb({"room": 0}), "room") == 0
    assert number_untrusted(msgpack.packb({"room": 2**63}), "room") == 2**63


@pytest.mark.parametrize(
    "said", [{}, {"room": -1}, {"room": True}, {"room": 1.0}, {"room": "1"}, {"room": None}, [1], 1]
)
def test_what_is_no_number_says_nothing(said: object) -> None:
    assert number_untrusted(msgpack.packb(said), "room") is None


def test_bytes_that_are_no_message_say_nothing() -> None:
    assert number_untrusted(b"", "room") is None
    assert number_untrusted(b"\xc1", "room") is None
