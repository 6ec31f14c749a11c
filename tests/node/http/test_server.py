"""The server on a real socket, beside a node on the in-memory network: what it answers, and what it withstands."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from node.errors import BusyError, ConfigError
from node.http import listener as listener_module
from node.http.listener import CONNECTIONS_MAX
from node.http.server import HttpServer, load_token, open_server
from node.node import Node
from tests.node.http.client import get, send
from tests.node.nodes import open_world

pytestmark = pytest.mark.trio


@asynccontextmanager
async def serving(folder: Path, **flags: Any) -> AsyncIterator[tuple[Node, HttpServer, int]]:
    """A node that is first in its swarm, and its server; both end with the block, within its time."""
    flags = {"http_listen": "0", **flags}
    with trio.fail_after(40):
        async with open_world(folder) as world, trio.open_nursery() as nursery:
            node = await world.node(run=world.run_file(), **flags)
            async with open_server(node) as server:
                node.http = server
                await nursery.start(server.run)
                yield node, server, server.address.port
                nursery.cancel_scope.cancel()


def test_health_metrics_and_status_are_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (node, _, port):
            assert (await get(port, "/healthz")).text == "ok\n"
            assert (await get(port, "/startupz")).status == 200
            metrics = await get(port, "/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=")
            assert "murmura_healthy 1.0" in metrics.text
            status = (await get(port, "/api/status")).json
            assert status["node"]["peer_id"] == str(node.peer_id)
            assert status["network"]["http"]["address"] == f"127.0.0.1:{port}"
            assert (await get(port, "/api/history")).json["step"] == []
            assert (await get(port, "/nothing")).status == 404

    trio.run(main)


def test_readiness_is_of_this_node_and_not_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (node, _, port):
            node.life.needs_state("pipeline", "fetching stage 1")
            not_ready = await get(port, "/readyz")
            assert not_ready.status == 503
            assert not_ready.text.startswith(("joining: ", "syncing: "))
            node.life.has_state("pipeline", "has it")
            assert (await get(port, "/readyz")).status == 200
            # An unhealthy run: it has stood still for longer than it may. This node can do nothing about it.
            monkeypatch.setattr(node.health, "problem", lambda now_s: "the run stands still")
            assert not (await get(port, "/api/status")).json["healthy"]
            assert (await get(port, "/readyz")).status == 200
            node.life.drain("asked by the test")
            assert (await get(port, "/readyz")).status == 503
            assert (await get(port, "/healthz")).status == 200

    trio.run(main)


def test_every_answer_forbids_what_is_not_of_the_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, _, port):
            for path in ("/", "/metrics", "/nothing", "/api/status"):
                headers = (await get(port, path)).headers
                assert "default-src 'none'" in headers["content-security-policy"]
                assert headers["x-content-type-options"] == "nosniff"
                assert "access-control-allow-origin" not in headers
                assert "server" not in headers

    trio.run(main)


def test_a_foreign_host_and_another_origin_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, _, port):
            assert (await get(port, "/api/status", Host="evil.example")).status == 421
            assert (await get(port, "/api/status", Origin="http://evil.example")).status == 403
            assert (await get(port, "/healthz", Host="evil.example")).status == 200
            no_host = await send(port, b"GET / HTTP/1.0\r\n\r\n")
            assert no_host.status == 421

    trio.run(main)


def test_an_exposed_page_wants_the_token_and_then_keeps_it_as_a_cookie(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, http_listen="0.0.0.0:0") as (node, _, port):
            path = node.paths.state_dir / "http-token"
            assert path.stat().st_mode & 0o777 == 0o600
            token = path.read_text().strip()
            assert (await get(port, "/healthz")).status == 200
            assert (await get(port, "/metrics")).status == 200
            refused = await get(port, "/api/status")
            assert refused.status == 401
            assert token not in refused.text
            shown = await get(port, "/api/status", Authorization=f"Bearer {token}")
            assert shown.status == 200
            link = await get(port, f"/?token={token}")
            assert (link.status, link.headers["location"]) == (303, "/")
            cookie = link.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert (await get(port, "/", Cookie=cookie.partition(";")[0])).status == 200
            assert (await get(port, "/?token=wrong")).status == 401

    trio.run(main)


def test_a_token_of_ones_own_is_taken_and_a_bad_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "http-token"
    made = load_token(path)
    assert load_token(path) == made
    path.write_text("a token of the operator\n")
    assert load_token(path) == "a token of the operator"
    for bad in ("", "short", "x" * 300, "ünïcode ünïcode ünïcode"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load_token(path)


def test_requests_that_are_too_long_or_no_http_end_their_connection_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, _, port):
            head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode()
            assert (await send(port, head + b"X: " + b"x" * 100_000)).status == 431
            assert (await get(port, "/" + "x" * 20_000)).status in (414, 431)
            assert (await send(port, b"\x00\x01\x02 not http\r\n\r\n")).status == 400
            body = head.replace(b"GET /", b"POST /api/status") + b"Content-Length: 9000000\r\n"
            assert (await send(port, body + b"Connection: close\r\n\r\n")).status in (405, 413)
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
                assert (await get(port, "/api/status", method=method)).status == 405
            assert (await get(port, "/healthz")).status == 200

    trio.run(main)


def test_a_thousand_connections_leave_room_for_who_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, server, port), trio.open_nursery() as nursery:
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(1000)]
            for _ in range(3):
                assert (await get(port, "/healthz")).status == 200
            assert server.status()["connections"] <= CONNECTIONS_MAX
            assert server.status()["connections_closed_early"] >= 1000 - CONNECTIONS_MAX
            for stream in streams:
                nursery.start_soon(stream.aclose)

    trio.run(main)


async def scrape_and_never_read(port: int) -> trio.SocketStream:
    """Ask for more than all buffers between hold, and read none of it."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asked = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with trio.move_on_after(1.0):  # the server stops reading, too
        await stream.send_all(asked * 2000)
    return stream


def test_a_scrape_that_never_reads_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "SEND_S", 0.5)

    async def main() -> None:
        async with serving(tmp_path) as (_, server, port):
            stream = await scrape_and_never_read(port)
            while server.status()["connections"]:  # noqa: ASYNC110 - as an operator looks
                await trio.sleep(0.05)
            assert (await get(port, "/healthz")).status == 200
            await trio.aclose_forcefully(stream)

    trio.run(main)


def test_a_scrape_that_never_reads_does_not_keep_the_node_from_leaving(tmp_path: Path) -> None:
    async def main() -> float:
        async with serving(tmp_path) as (_, server, port):
            stream = await scrape_and_never_read(port)
            assert server.status()["connections"] == 1
            began_s = trio.current_time()
        await trio.aclose_forcefully(stream)
        return trio.current_time() - began_s

    assert trio.run(main) < 2


def test_a_port_that_is_taken_is_said_with_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def main() -> None:
            async with serving(tmp_path, http_listen=str(port)):
                pass

        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main)
    found = caught.value.split(BusyError)[0]
    assert found is not None
    assert f"cannot listen for HTTP on 127.0.0.1:{port}" in repr(found)
    assert "--http-listen" in repr(found.exceptions)


def test_an_address_that_is_not_ours_is_a_wrong_setting(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, http_listen="192.0.2.1:4002"):
            pass

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.value.split(ConfigError)[0] is not None


def test_an_upgrade_leads_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, server, port):
            socket_answer = await get(
                port,
                "/api/status",
                Upgrade="websocket",
                Connection="Upgrade",
                Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
                Sec_WebSocket_Version="13",
            )
            assert socket_answer.status in (400, 403, 404)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000)
            with trio.move_on_after(0.5):
                while await stream.receive_some(65536):
                    pass
            await trio.aclose_forcefully(stream)
            assert (await get(port, "/healthz")).status == 200
            while server.status()["connections"]:  # noqa: ASYNC110 - as an operator looks
                await trio.sleep(0.05)

    trio.run(main)
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
