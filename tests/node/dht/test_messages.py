"""The daemon and its dht process: whatever comes over the socket decodes or is blamed on the other side."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.dht.messages import (
    LENGTH,
    MESSAGE_BYTES_MAX,
    Failed,
    LookUpRest,
    Meet,
    answer_untrusted,
    body_length_untrusted,
    pack_answer,
    pack_question,
    question_untrusted,
)
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID


def test_a_question_arrives_as_it_was_asked() -> None:
    for question in (Meet(peers=(PeerID(b"peer"),)), LookUpRest(digest=b"d" * 20)):
        raw = pack_question(7, question)
        assert body_length_untrusted(raw[: LENGTH.size]) == len(raw) - LENGTH.size
        assert question_untrusted(raw[LENGTH.size :]) == (7, question)


def test_a_failure_arrives_as_one_and_is_short() -> None:
    raw = pack_answer(3, Failed("x" * 1000))
    assert answer_untrusted(raw[LENGTH.size :]) == (3, Failed("x" * 500))


def test_a_length_over_the_bound_is_refused_before_anything_is_allocated() -> None:
    for length in (0, MESSAGE_BYTES_MAX + 1, 2**32 - 1):
        with pytest.raises(RemoteProtocolError):
            body_length_untrusted(struct.pack("<I", length))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(body: bytes) -> None:
    for decode in (question_untrusted, answer_untrusted):
        with pytest.raises(RemoteProtocolError):
            decode(body)
