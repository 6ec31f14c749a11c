"""Who may have what, as a table: the core decides from the facts of one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.access import Access, Asked

TOKEN = "correct-horse-battery"
LOOPBACK = Access()
EXPOSED = Access(names=frozenset({"node.example"}), token=TOKEN)


def status(access: Access, asked: Asked) -> int:
    refusal = access.refusal(asked)
    return refusal.status if refusal else 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/startupz"])
def test_health_needs_neither_name_nor_token(path: str) -> None:
    for host in ("", "10.1.2.3:4002", "evil.example", "\x00"):
        assert status(EXPOSED, Asked(path=path, host=host)) == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:4002", "127.0.0.1:4002", "[::1]:4002", "192.0.2.1", "localhost."],
)
def test_what_no_name_server_can_make_up_is_answered(host: str) -> None:
    assert status(LOOPBACK, Asked(path="/", host=host)) == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:4002", "127.0.0.1.evil.example", "[evil]", "1.2.3"]
)
def test_a_name_that_could_be_rebound_is_refused(host: str) -> None:
    for path in ("/", "/metrics", "/api/status", "/nothing"):
        assert status(LOOPBACK, Asked(path=path, host=host)) == 421


def test_a_name_of_the_settings_is_answered() -> None:
    asked = Asked(path="/", host="Node.Example:4002", tokens=(TOKEN,))
    assert status(EXPOSED, asked) == 200
    assert status(LOOPBACK, asked) == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:9999", "file://", "//127.0.0.1:4002"],
)
def test_another_origin_is_refused(origin: str) -> None:
    assert status(LOOPBACK, Asked(path="/", host="127.0.0.1:4002", origin=origin)) == 403


def test_the_pages_own_origin_is_answered() -> None:
    asked = Asked(path="/api/status", host="127.0.0.1:4002", origin="http://127.0.0.1:4002")
    assert status(LOOPBACK, asked) == 200


def test_a_link_may_be_followed_and_nothing_else_may_come_from_another_site() -> None:
    def asked(site: str, mode: str) -> Asked:
        return Asked(path="/", host="127.0.0.1", fetch_site=site, fetch_mode=mode)

    assert status(LOOPBACK, asked("cross-site", "navigate")) == 200
    assert status(LOOPBACK, asked("cross-site", "no-cors")) == 403
    assert status(LOOPBACK, asked("same-site", "cors")) == 403
    assert status(LOOPBACK, asked("same-origin", "cors")) == 200
    assert status(LOOPBACK, asked("none", "navigate")) == 200


def test_an_exposed_page_wants_the_token_and_metrics_do_not() -> None:
    def asked(path: str, *tokens: str) -> Asked:
        return Asked(path=path, host="192.0.2.1", tokens=tokens)

    for path in ("/", "/page.js", "/api/status", "/nothing"):
        assert status(EXPOSED, asked(path)) == 401
        assert status(EXPOSED, asked(path, "wrong", "")) == 401
        assert status(EXPOSED, asked(path, "ünïcode")) == 401
        assert status(EXPOSED, asked(path, "wrong", TOKEN)) == 200
    assert status(EXPOSED, asked("/metrics")) == 200
    assert TOKEN not in repr(EXPOSED)


ANY = st.text(st.characters(), max_size=60)


@given(host=ANY, origin=ANY, fetch_site=ANY, tokens=st.lists(ANY, max_size=3))
def test_whatever_a_client_says_is_decided(
    host: str, origin: str, fetch_site: str, tokens: list[str]
) -> None:
    asked = Asked(
        path="/api/status", host=host, origin=origin, fetch_site=fetch_site, tokens=tuple(tokens)
    )
    assert status(EXPOSED, asked) in (401, 403, 421)
