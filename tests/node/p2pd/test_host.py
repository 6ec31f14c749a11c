"""The real host under fire: p2pd killed, the daemon killed, ports taken, handlers that must come back."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from node.errors import BusyError, ConfigError
from node.identity import Identity
from node.p2pd.client import ControlClient
from node.p2pd.host import P2pdHost
from protocols.frames import TensorSpec
from protocols.handshake import check_hello, protocol_of
from protocols.ids import RunID
from protocols.ports import PeerUnreachableError, StreamClosedError
from protocols.replies import Hello
from swarm.calls import Answer, Caller, CallError, Guard, GuardLimits, Incoming, Service, WireTensor
from tests.fakes.signer import SeededSigner
from tests.node.http.client import get
from tests.node.p2pd.hosts import open_host, options_in, two_hosts

pytestmark = pytest.mark.process

DEADLINE_S = 30.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mu") as name:
        yield Path(name)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(DEADLINE_S):
            await main()

    trio.run(bounded)


async def echo(incoming: Incoming) -> Answer:
    return Answer(incoming.message, incoming.tensors)


async def serve_echo(host: P2pdHost, guard: Guard | None = None) -> Service:
    service = Service(host, "echo", answer=echo, accept=lambda peer, hello: None, guard=guard)
    await service.start()
    return service


def test_p2pd_killed_under_load_comes_back_as_the_same_peer(folder: Path) -> None:
    async def main() -> None:
        async with two_hosts(folder) as (a, b):
            restarted = trio.Event()

            async def hook() -> None:
                restarted.set()

            b.on_restart(hook)
            await serve_echo(b)
            await a.connect(b.addresses()[0])
            caller = Caller(a, hello=Hello())
            addresses, pid = list(b.addresses()), b.p2pd_pid
            tensor = WireTensor(TensorSpec("uint8", (4 << 20,)), memoryview(bytearray(4 << 20)))
            failures = 0

            async def keep_calling() -> None:
                nonlocal failures
                while not restarted.is_set():
                    try:
                        await caller.call(b.peer_id, "echo", "x", [tensor], deadline_s=5.0)
                    except (StreamClosedError, PeerUnreachableError):
                        failures += 1
                        await trio.sleep(0.05)

            await caller.call(b.peer_id, "echo", "x", deadline_s=5.0)
            await trio.sleep(0.5)  # b looks at its peers shortly after it met one
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(keep_calling)
                await trio.sleep(0.3)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            assert failures > 0
            assert b.restarts == 1
            assert b.p2pd_pid != pid
            assert list(b.addresses()) == addresses
            await call_until_answered(caller, b)

    run(main)


async def call_until_answered(caller: Caller, host: P2pdHost) -> None:
    while True:
        try:
            await caller.call(host.peer_id, "echo", "x", deadline_s=5.0)
            return
        except (CallError, StreamClosedError, PeerUnreachableError):
            await trio.sleep(0.1)


def test_after_its_own_p2pd_was_killed_a_host_reaches_its_peers_again(folder: Path) -> None:
    async def main() -> None:
        async with two_hosts(folder) as (a, b), b.subscribe("news") as notices:
            await serve_echo(b)
            await a.connect(b.addresses()[0])
            caller = Caller(a, hello=Hello())
            await caller.call(b.peer_id, "echo", "x", deadline_s=5.0)
            assert a.p2pd_pid is not None
            os.kill(a.p2pd_pid, signal.SIGKILL)
            await call_until_answered(caller, b)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_for_ever, a)
                assert (await anext(notices)).data == b"back again"
                nursery.cancel_scope.cancel()

    run(main)


async def publish_for_ever(host: P2pdHost) -> None:
    while True:
        await host.publish("news", b"back again")
        await trio.sleep(0.1)


def test_p2pd_outlives_the_other_programs_that_share_it(folder: Path) -> None:
    async def main() -> None:
        async with open_host(folder / "a") as a:
            held = await ControlClient(a.control_path).hold()  # as the dht process does
            await held.aclose()
            await trio.sleep(0.3)
            assert await a.peers() == []
            assert a.restarts == 0

    run(main)


def test_a_p2pd_that_hangs_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.p2pd.host.REFRESH_S", 0.1)
    monkeypatch.setattr("node.p2pd.host.MISSES_MAX", 2)

    async def main() -> None:
        async with open_host(folder / "a") as a:
            back = trio.Event()

            async def hook() -> None:
                back.set()

            a.on_restart(hook)
            pid = a.p2pd_pid
            assert pid is not None
            monkeypatch.setattr(a._client, "_timeout_s", 0.5)
            os.kill(pid, signal.SIGSTOP)
            await back.wait()
            assert not alive(pid)
            assert a.restarts == 1

    run(main)


def test_nothing_is_left_when_the_daemon_is_killed(folder: Path) -> None:
    code = """
import sys, trio
from pathlib import Path
from tests.node.p2pd.hosts import open_host

async def main():
    async with open_host(Path(sys.argv[1])) as host:
        print(host.p2pd_pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    command = [sys.executable, "-c", code, str(folder / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        p2pd_pid = int(daemon.stdout.readline())
        daemon.kill()
    deadline_s = time.monotonic() + 5.0
    while alive(p2pd_pid):
        assert time.monotonic() < deadline_s, "p2pd survived the daemon"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_host_that_closes_leaves_neither_process_nor_socket(folder: Path) -> None:
    async def main() -> None:
        async with open_host(folder / "a") as a:
            pid = a.p2pd_pid
        assert pid is not None
        assert not alive(pid)
        assert [path.name for path in (folder / "a").iterdir()] == ["identity.key"]

    run(main)


def test_a_port_in_use_ends_the_start_with_a_clear_error(folder: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
            listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
            with pytest.raises(BusyError, match=listen):
                async with open_host(folder / "a", listen=(listen,)):
                    pass

    run(main)


def test_a_runtime_folder_with_a_long_name_ends_the_start_with_a_clear_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--runtime-dir"):
        options_in(folder / ("x" * 100)).check()


def test_an_identity_that_p2pd_cannot_read_ends_the_start_with_its_words(folder: Path) -> None:
    async def main() -> None:
        options = options_in(folder / "a")
        options.identity_path.write_bytes(b"nonsense")
        with pytest.raises(Exception, match="p2pd ended with code"):
            async with P2pdHost.open(options, SeededSigner(1).peer_id):
                pass

    run(main)


def test_a_refusal_is_heard_at_the_other_end_however_large_the_request(folder: Path) -> None:
    async def main() -> None:
        async with two_hosts(folder) as (a, b):
            run_id = RunID(b"r" * 32)
            service = Service(
                b,
                "private",
                answer=echo,
                accept=lambda peer, hello: check_hello(
                    hello,
                    run=run_id,
                    run_key=b"key",
                    protocol=protocol_of("private"),
                    opener=peer,
                    server=b.peer_id,
                ),
            )
            await service.start()
            await a.connect(b.addresses()[0])
            for hello, code in ((Hello(), "wrong-run"), (Hello(run=run_id), "wrong-key")):
                for size in (10, 50_000, 5_000_000):
                    tensor = WireTensor(TensorSpec("uint8", (size,)), memoryview(bytes(size)))
                    with pytest.raises(CallError) as caught:
                        await Caller(a, hello=hello).call(
                            b.peer_id, "private", "x", [tensor], deadline_s=5.0
                        )
                    assert caught.value.code == code

    run(main)


def test_a_thousand_streams_of_one_peer_leave_the_node_serving(folder: Path) -> None:
    async def main() -> None:
        async with two_hosts(folder) as (a, b):
            guard = Guard(GuardLimits(streams_per_peer_max=20))
            service = await serve_echo(b, guard)
            await a.connect(b.addresses()[0])
            streams = []
            for _ in range(300):
                stream = await a.open_stream(b.peer_id, protocol_of("echo"))
                streams.append(stream)
                with suppress(StreamClosedError):  # turned away already
                    await stream.send_all(b"m")
            assert service.statistics().streams_open <= 20
            for stream in streams:
                await stream.aclose()
            caller = Caller(a, hello=Hello())
            await call_until_answered(caller, b)
            assert guard.streams_refused > 0

    run(main)


def test_p2pd_serves_its_own_metrics_where_it_is_told_and_a_taken_port_is_said(
    folder: Path,
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
            taken = dataclasses.replace(
                options_in(folder / "a"), metrics_listen=f"127.0.0.1:{port}"
            )
            identity = Identity.load_or_create(taken.identity_path)
            with pytest.raises(BusyError) as refused:
                async with P2pdHost.open(taken, identity.peer_id):
                    raise AssertionError("started")
            assert "--transport-metrics-listen" in refused.value.hint
        async with P2pdHost.open(taken, identity.peer_id):
            metrics = await get(port, "/metrics")
        assert metrics.status == 200
        assert b"libp2p_" in metrics.body

    run(main)
