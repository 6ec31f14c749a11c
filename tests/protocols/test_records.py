"""Directory records: what is accepted, what is refused and under which name."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.identity import verify_signature
from protocols.errors import LocalProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import RunID
from protocols.records import (
    HORIZON_S,
    LIFETIME_S_MAX,
    RECORD_BYTES_MAX,
    SKEW_S_MAX,
    VALUE_BYTES_MAX,
    Author,
    RecordRefusedError,
    Refusal,
    Statement,
    key_digest,
    live_records,
    open_record_untrusted,
    run_key,
    seal,
)
from protocols.schema import encode
from tests.fakes.signer import SeededSigner

NOW_S = 1_700_000_000.0
KEY = "stage/1"
DIGEST = key_digest(KEY)
ALICE = SeededSigner(1)
BOB = SeededSigner(2)


def statement_of(signer: SeededSigner = ALICE, **changes: object) -> Statement:
    made = Statement(
        owner=signer.peer_id, value=b"here", issued_s=NOW_S, expires_s=NOW_S + 60.0, sequence=1
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def sealed_without_checks(
    statement: Statement, signer: SeededSigner, digest: bytes = DIGEST
) -> bytes:
    """Sign what `seal` would refuse to, as a dishonest peer does."""
    signed = msgpack.packb(["murmura/directory/1", digest, encode(statement)])
    return bytes(msgpack.packb({"statement": encode(statement), "signature": signer.sign(signed)}))


def refusal_of(raw: bytes, *, owner: bytes = ALICE.peer_id, digest: bytes = DIGEST) -> Refusal:
    with pytest.raises(RecordRefusedError) as caught:
        open_record_untrusted(raw, digest=digest, owner=owner, now_s=NOW_S, verify=verify_signature)
    return caught.value.refusal


def test_a_sealed_record_opens_to_the_same_statement() -> None:
    statement = statement_of()
    raw = seal(ALICE, DIGEST, statement)
    opened = open_record_untrusted(
        raw, digest=DIGEST, owner=ALICE.peer_id, now_s=NOW_S, verify=verify_signature
    )
    assert opened == statement


def test_the_largest_value_fits_into_a_record() -> None:
    raw = seal(ALICE, DIGEST, statement_of(value=b"x" * VALUE_BYTES_MAX, sequence=2**63 - 1))
    assert len(raw) <= RECORD_BYTES_MAX
    open_record_untrusted(
        raw, digest=DIGEST, owner=ALICE.peer_id, now_s=NOW_S, verify=verify_signature
    )


def test_a_record_signed_by_somebody_else_is_forged() -> None:
    assert refusal_of(sealed_without_checks(statement_of(ALICE), BOB)) is Refusal.FORGED


def test_a_record_moved_to_another_key_is_forged() -> None:
    raw = seal(ALICE, DIGEST, statement_of())
    assert refusal_of(raw, digest=key_digest("stage/2")) is Refusal.FORGED


def test_a_record_of_one_run_is_forged_in_another() -> None:
    here, there = RunID(b"a" * 32), RunID(b"b" * 32)
    raw = seal(ALICE, key_digest(run_key(here, "members")), statement_of())
    assert refusal_of(raw, digest=key_digest(run_key(there, "members"))) is Refusal.FORGED


def test_a_record_under_somebody_elses_sub_key_is_foreign() -> None:
    assert refusal_of(seal(BOB, DIGEST, statement_of(BOB))) is Refusal.FOREIGN
    assert refusal_of(seal(BOB, DIGEST, statement_of(BOB)), owner=b"not a peer") is Refusal.FOREIGN


def test_an_expired_record_is_refused_to_the_second() -> None:
    raw = seal(ALICE, DIGEST, statement_of(issued_s=NOW_S - 60, expires_s=NOW_S))
    assert refusal_of(raw) is Refusal.EXPIRED


def test_a_record_that_expires_in_a_year_is_refused() -> None:
    year_s = 365 * 86400.0
    raw = sealed_without_checks(statement_of(expires_s=NOW_S + year_s), ALICE)
    assert refusal_of(raw) is Refusal.TOO_FAR
    dated_ahead = statement_of(issued_s=NOW_S + year_s, expires_s=NOW_S + year_s + 60)
    assert refusal_of(seal(ALICE, DIGEST, dated_ahead)) is Refusal.TOO_FAR


def test_a_clock_a_little_ahead_is_forgiven() -> None:
    ahead = statement_of(
        issued_s=NOW_S + SKEW_S_MAX - 0.1, expires_s=NOW_S + SKEW_S_MAX + LIFETIME_S_MAX
    )
    open_record_untrusted(
        seal(ALICE, DIGEST, ahead),
        digest=DIGEST, owner=ALICE.peer_id, now_s=NOW_S, verify=verify_signature,
    )  # fmt: skip


def test_an_oversized_value_is_refused_before_its_signature_is_checked() -> None:
    raw = sealed_without_checks(statement_of(value=b"x" * (VALUE_BYTES_MAX + 1)), BOB)
    assert refusal_of(raw) is Refusal.TOO_LARGE
    assert refusal_of(b"x" * (RECORD_BYTES_MAX + 1)) is Refusal.TOO_LARGE


def test_an_expiry_before_the_issue_is_malformed() -> None:
    raw = sealed_without_checks(statement_of(issued_s=NOW_S + 2, expires_s=NOW_S + 1), ALICE)
    assert refusal_of(raw) is Refusal.MALFORMED


def test_numbers_that_are_none_are_malformed() -> None:
    for poison in (float("nan"), float("inf"), -1.0, "soon", None):
        raw = sealed_without_checks(statement_of(expires_s=poison), ALICE)
        assert refusal_of(raw) is Refusal.MALFORMED


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_by_name(raw: bytes) -> None:
    assert refusal_of(raw) is Refusal.MALFORMED


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_one_flipped_bit_is_never_accepted(position: int, bit: int) -> None:
    raw = bytearray(seal(ALICE, DIGEST, statement_of()))
    raw[position % len(raw)] ^= 1 << bit
    refusal_of(bytes(raw))


def test_seal_refuses_what_readers_would() -> None:
    for statement in (
        statement_of(BOB),
        statement_of(value=b"x" * (VALUE_BYTES_MAX + 1)),
        statement_of(expires_s=NOW_S),
        statement_of(expires_s=NOW_S + HORIZON_S + 1),
    ):
        with pytest.raises(LocalProtocolError):
            seal(ALICE, DIGEST, statement)


def test_an_authors_later_word_has_the_later_expiry_even_when_it_lives_shorter() -> None:
    author = Author(ALICE)
    long, _ = author.announce(KEY, b"long", now_s=NOW_S, lifetime_s=600.0)
    short, _ = author.announce(KEY, b"short", now_s=NOW_S, lifetime_s=10.0)
    assert short.supersedes(long)
    assert short.expires_s > long.expires_s


def test_a_withdrawal_outlives_what_it_withdraws_and_is_withdrawn_by_an_announcement() -> None:
    author = Author(ALICE)
    announced, _ = author.announce(KEY, b"here", now_s=NOW_S, lifetime_s=60.0)
    withdrawal = author.withdraw(KEY, now_s=NOW_S + 1)
    assert withdrawal is not None
    left = withdrawal[0]
    assert left.expires_s > announced.expires_s
    assert not live_records([announced, left], NOW_S + 1)
    assert author.withdraw(KEY, now_s=NOW_S + 2) is None
    back, _ = author.announce(KEY, b"back", now_s=NOW_S + 3, lifetime_s=5.0)
    assert [record.value for record in live_records([back, left, announced], NOW_S + 3)] == [
        b"back"
    ]


def test_nothing_is_withdrawn_that_was_never_said_or_has_expired() -> None:
    author = Author(ALICE)
    assert author.withdraw(KEY, now_s=NOW_S) is None
    author.announce(KEY, b"here", now_s=NOW_S, lifetime_s=60.0)
    assert author.withdraw(KEY, now_s=NOW_S + 61) is None


def test_a_restarted_author_goes_on_above_what_it_said_before() -> None:
    before, _ = Author(ALICE).announce(KEY, b"before", now_s=NOW_S, lifetime_s=60.0)
    after, _ = Author(ALICE).announce(KEY, b"after", now_s=NOW_S + 0.01, lifetime_s=60.0)
    assert after.supersedes(before)


def test_the_encoding_is_plain_msgpack_with_named_fields() -> None:
    """The wire form is a promise: see protocols/README.md, Directory records."""
    data = unpack_untrusted(seal(ALICE, DIGEST, statement_of()))
    assert data.keys() == {"statement", "signature"}
    assert list(data["statement"]) == ["owner", "value", "issued_s", "expires_s", "sequence"]
