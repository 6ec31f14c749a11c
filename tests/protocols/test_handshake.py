"""Who may use a service: run, version and run key."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.handshake import (
    check_hello,
    decode_error_reply_untrusted,
    decode_hello_untrusted,
    decode_welcome_untrusted,
    protocol_of,
    prove_run_key,
    with_proof,
)
from protocols.ids import PeerID, RunID
from protocols.replies import ErrorReply, Hello, Welcome
from protocols.schema import encode
from tests.protocols.test_frames import messages

RUN = RunID(bytes(range(32)))
A, B, C = PeerID(b"peer A"), PeerID(b"peer B"), PeerID(b"peer C")
KEY = b"k" * 32


def refusal(
    hello: Hello, *, key: bytes | None = KEY, opener: PeerID = A, server: PeerID = B
) -> str | None:
    reply = check_hello(hello, run=RUN, run_key=key, protocol="/p/1", opener=opener, server=server)
    return reply.code if reply else None


def test_a_service_is_a_versioned_protocol() -> None:
    assert protocol_of("stage") == "/murmura/stage/1"


def test_a_member_with_the_key_is_accepted() -> None:
    hello = with_proof(Hello(run=RUN), KEY, protocol="/p/1", opener=A, server=B)
    assert len(hello.proof) == 32
    assert refusal(hello) is None


def test_a_public_run_asks_for_no_proof() -> None:
    assert refusal(Hello(run=RUN), key=None) is None
    assert with_proof(Hello(run=RUN), None, protocol="/p/1", opener=A, server=B).proof == b""


def test_a_proof_is_worth_nothing_elsewhere() -> None:
    hello = with_proof(Hello(run=RUN), KEY, protocol="/p/1", opener=A, server=B)
    assert refusal(hello, opener=C) == "wrong-key"
    assert refusal(hello, server=C) == "wrong-key"
    assert refusal(hello, key=b"another key") == "wrong-key"
    assert (
        refusal(with_proof(Hello(run=RUN), KEY, protocol="/p/2", opener=A, server=B)) == "wrong-key"
    )
    assert (
        refusal(with_proof(Hello(run=RUN), KEY, protocol="/p/1", opener=B, server=A)) == "wrong-key"
    )


def test_another_run_is_refused_whatever_it_proves() -> None:
    other = RunID(bytes(32))
    assert (
        refusal(with_proof(Hello(run=other), KEY, protocol="/p/1", opener=A, server=B))
        == "wrong-run"
    )
    assert refusal(Hello()) == "wrong-run"


def test_a_refusal_does_not_name_a_private_run() -> None:
    for key, named in ((KEY, False), (None, True)):
        reply = check_hello(Hello(), run=RUN, run_key=key, protocol="/p/1", opener=A, server=B)
        assert reply is not None
        assert (RUN.short in reply.reason) is named


def test_the_proof_is_the_one_in_the_specification() -> None:
    proof = prove_run_key(KEY, run=RUN, protocol="/murmura/stage/1", opener=A, server=B)
    assert proof.hex() == "1d584ed9c0c6978ba8ef55c2a3728527bcea48c728131f1faeee52bcc3b8d268"


def test_another_version_is_refused_even_with_keys_we_do_not_know() -> None:
    answer = decode_hello_untrusted({"wire_version": 7, "colour": "red"})
    assert isinstance(answer, ErrorReply)
    assert answer.code == "wrong-version"
    assert "not 7" in answer.reason


def test_hello_welcome_and_error_survive_the_wire() -> None:
    hello = Hello(run=RUN, role="trainer", proof=bytes(32))
    assert decode_hello_untrusted(encode(hello)) == hello
    assert decode_welcome_untrusted(encode(Welcome())) == Welcome()
    reply = ErrorReply(code="busy", reason="later", retry_after_s=1.5)
    assert decode_error_reply_untrusted(encode(reply)) == reply


@given(messages)
def test_any_message_is_a_hello_a_refusal_or_blames_the_sender(message: Any) -> None:
    for decode in (decode_hello_untrusted, decode_welcome_untrusted, decode_error_reply_untrusted):
        with suppress(RemoteProtocolError):
            decode(message)


@given(st.integers())
def test_any_version_number_is_answered(version: int) -> None:
    answer = decode_hello_untrusted({"wire_version": version})
    assert isinstance(answer, Hello if version == 1 else ErrorReply)
