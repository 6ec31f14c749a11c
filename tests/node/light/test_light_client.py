"""The light client against a real p2pd: it gets the public status, or says in one sentence why not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from node import exit_codes
from node.clock import unix_s
from node.identity import Identity
from node.light.ask import Asker
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID, RunID
from protocols.invite import Invite
from protocols.public import PublicStatus
from protocols.replies import ErrorReply, Hello
from protocols.schema import encode
from swarm.calls import Answer, Incoming, Service
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.process

DEADLINE_S = 40.0
SOMEBODY = SeededSigner(9).peer_id


async def ask(address: str, *options: str, says: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "node.light.client", address, *options]
    run = partial(
        subprocess.run, command, input=says, capture_output=True, text=True, timeout=20, check=False
    )
    return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def host(folder: Path) -> AsyncIterator[P2pdHost]:
    identity = Identity.load_or_create(folder / "identity.key")
    options = P2pdOptions(
        identity_path=folder / "identity.key",
        runtime_dir=folder / "run",
        listen=("/ip4/127.0.0.1/tcp/0",),
        autonat=False,
    )
    async with P2pdHost.open(options, identity.peer_id) as opened:
        yield opened


async def answer(incoming: Incoming) -> Answer:
    assert incoming.hello.role == "visitor"
    status = PublicStatus(
        software="0.1.0", state="serving", state_seconds=12.5, run=RunID(b"r" * 32),
        run_name="demo", mode="pipeline", in_run=True, role="stage 1", step=41, peers=5, time_s=unix_s(),
    )  # fmt: skip
    return Answer(encode(status))


def accept(peer: PeerID, hello: Hello) -> ErrorReply | None:
    return None


def refuse(peer: PeerID, hello: Hello) -> ErrorReply | None:
    return ErrorReply(code="busy", reason="too many\n\x1b[31mstrangers")


def test_it_prints_the_public_status_and_how_far_the_clocks_are_apart(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with host(tmp_path) as node:
                await Service(node, "status", answer=answer, accept=accept).start()
                done = await ask(node.addresses()[0])
        assert done.returncode == exit_codes.OK, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert abs(report.pop("clock_skew_seconds")) < 1.0
        assert report == {
            "schema_version": 1, "software": "0.1.0", "state": "serving", "state_seconds": 12.5,
            "run": "72" * 32, "run_name": "demo", "mode": "pipeline", "in_run": True, "role": "stage 1", "step": 41, "peers": 5,
        }  # fmt: skip
        assert not done.stderr

    trio.run(main)


def test_with_an_invite_it_proves_the_key_of_a_private_run(tmp_path: Path) -> None:
    run, key = RunID(b"r" * 32), b"k" * 32

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with host(tmp_path) as node:

                def private(peer: PeerID, hello: Hello) -> ErrorReply | None:
                    protocol = protocol_of("status")
                    return check_hello(
                        hello,
                        run=run,
                        run_key=key,
                        protocol=protocol,
                        opener=peer,
                        server=node.peer_id,
                    )

                await Service(node, "status", answer=answer, accept=private).start()
                address = node.addresses()[0]
                invite = Invite(run=run, run_key=key).to_text()
                done = await ask(address, "--invited", says=invite)
                refused = await ask(address)
                broken = await ask(address, "--invited", says=invite[:-3])
        assert done.returncode == exit_codes.OK, done.stderr
        assert json.loads(done.stdout)["run_name"] == "demo"
        assert "wrong-run" in refused.stderr
        assert broken.returncode == exit_codes.CONFIG

    trio.run(main)


def test_it_says_which_step_failed(tmp_path: Path) -> None:
    """Nobody there, somebody else there, no such service there, and a service that refuses."""

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with host(tmp_path) as node:
                address = node.addresses()[0]
                stranger = address.replace(str(node.peer_id), str(SOMEBODY))
                assert "another peer answers" in (await failure(stranger))
                assert "not a Murmura node" in (await failure(address))
                await Service(node, "status", answer=answer, accept=refuse).start()
                refusal = await failure(address)
                assert "it refuses (busy): too many\\n\\x1b[31mstrangers" in refusal
            assert "nobody answers at 127.0.0.1" in (await failure(address))

    trio.run(main)


def test_what_is_no_libp2p_node_or_says_nothing_is_named_as_such() -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S), socket.create_server(("127.0.0.1", 0)) as silent:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, babble, 0)
                port = listeners[0].socket.getsockname()[1]
                said = await failure(f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}")
                assert "not a libp2p node" in said
                port = silent.getsockname()[1]
                address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}"
                assert "no answer within 0.5 s" in (await failure(address, "--deadline-s", "0.5"))
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_address_it_cannot_dial_is_refused_with_an_example() -> None:
    async def main() -> None:
        for address in (
            "localhost:4001",
            f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{SOMEBODY}",
            f"/ip4/127.0.0.1/tcp/0/p2p/{SOMEBODY}",
        ):
            done = await ask(address)
            assert done.returncode == exit_codes.CONFIG
            assert "/ip4/203.0.113.7/tcp/4001/p2p/" in done.stderr

    trio.run(main)


async def failure(address: str, *options: str) -> str:
    """Ask in vain; return the one line that says why."""
    done = await ask(address, *options)
    assert done.returncode == exit_codes.UNAVAILABLE, done.stderr
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    return line


async def babble(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x10HTTP/1.1 400 Bad Request\r\n\r\n")
    with suppress(trio.BrokenResourceError):
        async for _ in stream:
            pass


def test_many_are_asked_at_once_and_who_does_not_answer_holds_up_nobody(tmp_path: Path) -> None:
    async def main() -> list[list[dict[str, Any]]]:
        async with host(tmp_path) as node:
            await Service(node, "status", answer=answer, accept=accept).start()
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            addresses = [node.addresses()[0], f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}"]

            def rounds() -> list[list[dict[str, Any]]]:
                with Asker(addresses) as asker:
                    return [asker.round(), asker.round()]

            return await trio.to_thread.run_sync(rounds)

    for up, gone in trio.run(main):
        assert up["status"]["state"] == "serving"
        assert up["problem"] is None
        assert gone["status"] is None
        assert gone["problem"].startswith("nobody answers")
