"""Control messages: bounded, and anything malformed blames its sender."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.control.messages import (
    LENGTH,
    REQUEST_BYTES_MAX,
    ControlFailure,
    Request,
    body_length_untrusted,
    pack_failure,
    pack_request,
    pack_result,
    request_untrusted,
    response_untrusted,
)
from protocols.errors import RemoteProtocolError


def body(packed: bytes) -> bytes:
    assert LENGTH.unpack(packed[:4])[0] == len(packed) - 4
    return packed[4:]


def test_a_request_survives_being_sent() -> None:
    request = Request(method="drain", params={"deadline_s": 2.5, "x": None, "y": True, "z": "a"})
    assert request_untrusted(body(pack_request(request))) == request


def test_results_and_failures_can_be_told_apart() -> None:
    assert response_untrusted(body(pack_result({"a": [1, None]}))) == {"a": [1, None]}
    failure = ControlFailure(code="not-now", reason="because", hint="wait")
    assert response_untrusted(body(pack_failure(failure))) == failure


@pytest.mark.parametrize("length", [0, REQUEST_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_anything_is_allocated(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="1 to"):
        body_length_untrusted(LENGTH.pack(length), REQUEST_BYTES_MAX)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    for decode in (request_untrusted, response_untrusted):
        with contextlib.suppress(RemoteProtocolError):
            decode(raw)
