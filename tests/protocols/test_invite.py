"""Invites: what goes in comes out, and every mistake a person can make is named."""

from __future__ import annotations

import contextlib
import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.ids import PeerID, RunID, base58_encode
from protocols.invite import (
    ADDRESSES_MAX,
    PREFIX,
    Invite,
    InviteError,
    check_address,
    invite_from_text,
)

PEER = PeerID.from_ed25519(bytes(range(32)))
RUN = RunID(hashlib.sha256(b"a run").digest())
ADDRESS = f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}"
KEY = bytes(range(32))
INVITE = Invite(run=RUN, addresses=(ADDRESS, f"/dns4/example.org/tcp/4001/p2p/{PEER}"), run_key=KEY)


def sealed(data: object) -> str:
    """Make the text of an invite with a right checksum around any content."""
    payload = bytes(msgpack.packb(data))
    checksum = hashlib.sha256(PREFIX.encode() + payload).digest()[:4]
    return PREFIX + base58_encode(checksum + payload)


@pytest.mark.parametrize("invite", [INVITE, Invite(run=RUN), Invite(run=RUN, addresses=(ADDRESS,))])
def test_an_invite_survives_being_written_and_read(invite: Invite) -> None:
    assert invite_from_text(invite.to_text()) == invite


def test_an_invite_survives_a_mail_program_that_breaks_lines() -> None:
    text = INVITE.to_text()
    assert invite_from_text(f"  {text[:40]}\n {text[40:80]}\r\n\t{text[80:]}\n") == INVITE


def test_only_an_invite_with_a_key_is_secret_and_no_repr_shows_the_key() -> None:
    assert INVITE.is_secret
    assert not Invite(run=RUN).is_secret
    assert KEY.hex() not in repr(INVITE)
    assert repr(KEY) not in repr(INVITE)


@given(st.integers(len(PREFIX), len(INVITE.to_text()) - 1))
def test_an_invite_cut_short_is_refused(length: int) -> None:
    with pytest.raises(InviteError, match=r"cut short|not what an invite"):
        invite_from_text(INVITE.to_text()[:length])


@given(st.integers(len(PREFIX), len(INVITE.to_text()) - 1), st.sampled_from("23456789ABCDEFGH"))
def test_an_invite_with_one_wrong_character_is_refused(position: int, char: str) -> None:
    text = INVITE.to_text()
    changed = text[:position] + char + text[position + 1 :]
    if changed != text:
        with pytest.raises(InviteError):
            invite_from_text(changed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "starts with murmura1"),
        ("hello", "starts with murmura1"),
        ("murmura2abc", "another version"),
        (PREFIX + "0OIl", "not a base58 character"),
        (PREFIX + "2" * 5000, "longer than"),
        (sealed("not a list"), "not what an invite holds"),
        (sealed([bytes(RUN), ["/ip4"], b""]), "multiaddr|must end in"),
        (sealed([bytes(RUN), [ADDRESS + "\x1b[31m"], b""]), "no spaces or control"),
        (sealed([bytes(RUN), [7], b""]), "not what an invite holds"),
        (sealed([b"short", [], b""]), "32 bytes"),
        (sealed([bytes(RUN), [], b"short"]), "32 bytes"),
        (sealed([bytes(RUN), [ADDRESS] * (ADDRESSES_MAX + 1), b""]), "at most"),
    ],
)
def test_each_mistake_is_named(text: str, says: str) -> None:
    with pytest.raises(InviteError, match=says):
        invite_from_text(text)


@given(st.binary(max_size=300))
def test_any_bytes_make_an_invite_or_an_invite_error(payload: bytes) -> None:
    checksum = hashlib.sha256(PREFIX.encode() + payload).digest()[:4]
    with contextlib.suppress(InviteError):
        invite_from_text(PREFIX + base58_encode(checksum + payload))


@given(st.text(max_size=300))
def test_arbitrary_text_is_refused_without_being_repeated(text: str) -> None:
    """The text may be a mistyped invite to a private run: errors end up in logs."""
    with pytest.raises(InviteError) as caught:
        invite_from_text(PREFIX + text)
    assert len(text) < 8 or text not in str(caught.value)


def test_an_address_tells_whose_it_is() -> None:
    assert check_address(ADDRESS) == PEER


@pytest.mark.parametrize(
    "address",
    ["", "1.2.3.4:4001", "/ip4/1.2.3.4/tcp/4001", f"/p2p/{PEER}", "/ip4/1.2.3.4/tcp/1/p2p/x0"],
)
def test_an_address_that_names_no_peer_is_refused(address: str) -> None:
    with pytest.raises(InviteError):
        check_address(address)


@pytest.mark.parametrize("quotes", ['""', "''", "``", "\u201c\u201d", "\u00ab\u00bb", "\ufeff\n"])
def test_quotes_that_chats_and_shells_put_around_it_are_forgiven(quotes: str) -> None:
    invite = Invite(run=RunID(bytes(32)))
    assert invite_from_text(f" {quotes[0]}{invite.to_text()}{quotes[1]}\n") == invite
