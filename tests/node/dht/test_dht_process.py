"""The directory on real processes: p2pd, the dht process, and what happens when one of them is killed or lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.contracts.directory import CHECKS, eventually
from tests.node.dht.real import RealNode, real_node, real_nodes, until

pytestmark = pytest.mark.process

DEADLINE_S = 60.0


def test_the_process_comes_up_without_torch() -> None:
    """It keeps a dictionary: torch would make it 3 s slower and 215 MB larger."""
    code = (
        "import sys, node.dht.process.directory_node\n"
        "print([m for m in ('torch', 'numpy', 'trio', 'libp2p') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_large_value_is_paid_for_before_it_is_decoded() -> None:
    """A dictionary of nothing but empty containers takes 70 times its bytes when decoded; in a process of its own."""
    code = """
from types import SimpleNamespace
from node.dht.process.protocol import DHTProtocol, DirectoryProtocol, RecordChecker
from node.dht.process.record_store import StoreLimits

us = SimpleNamespace(record_validator=RecordChecker(StoreLimits()))
decoded = []
loads, DHTProtocol.serializer.loads = DHTProtocol.serializer.loads, lambda raw: decoded.append(len(raw)) or loads(raw)
bomb = lambda count: b"\\xdd" + count.to_bytes(4, "big") + b"\\x80" * count
store = lambda value: DirectoryProtocol._store_untrusted(us, b"peer", b"d" * 20, DHTProtocol.IS_DICTIONARY, value, 0.0)
assert not store(bomb(3_900_000)) and decoded == []
assert not any(store(bomb(500_000)) for _ in range(10))
print(sum(decoded), {str(k): n for k, n in us.record_validator.refused_stores.items()})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    decoded, _, refused = done.stdout.strip().partition(" ")
    assert int(decoded) <= 1_100_000, "what the allowance of one peer pays for"
    assert refused == "{'too-often': 9, 'malformed': 2}"


def test_the_real_directory_keeps_the_contract(tmp_path: Path) -> None:
    """Four nodes started at the same instant are one swarm, in which every promise of the port holds."""

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with real_nodes(tmp_path, 4) as nodes:
                for check in CHECKS:
                    await check([node.member for node in nodes[1:]])
                status = nodes[1].directory.status()
                assert status["records_refused"] == {}
                assert abs(status["clock_skew_seconds"]) < 1.0
                assert status["lookup_p95_seconds"] < 5.0
                # Who started a moment later than we greeted it is greeted again.
                await until(lambda: greeted(nodes[1]) == {"in one DHT with us"})

    trio.run(main)
    assert not list(tmp_path.glob("**/run/dht-*")), "hivemind left a socket behind"


def test_a_killed_dht_process_is_replaced_and_announcements_come_back(tmp_path: Path) -> None:
    """Goal: nothing above notices more than a pause. The process is killed at both ends, then p2pd with it."""

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with real_nodes(tmp_path, 2) as (reader, writer):
                assert await writer.directory.announce("key", b"here", 120.0)
                await eventually(reader.member, "key", [b"here"])

                await kill_dht_process(reader)
                assert [r.value for r in await reader.directory.look_up("key")] == [b"here"]
                await kill_dht_process(writer)
                for node in (reader, writer):
                    await node.joined()
                await until(lambda: writer.directory.status()["records_stored"] >= 1)
                async with real_node(tmp_path / "newcomer") as newcomer:
                    await newcomer.join(reader)
                    await eventually(newcomer.member, "key", [b"here"])
                assert writer.directory.status()["process_restarts"] == 1

    trio.run(main)


def test_it_is_replaced_after_p2pd_and_finds_its_place_again(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with real_nodes(tmp_path, 2) as (reader, writer):
                pid = pid_of(writer)
                assert writer.host.p2pd_pid is not None
                os.kill(writer.host.p2pd_pid, signal.SIGKILL)
                await until(lambda: pid_of(writer) is None)
                assert not await writer.directory.announce("key", b"later", 60.0)
                own = await writer.directory.look_up("key")
                assert [record.value for record in own] == [b"later"]
                await until(lambda: pid_of(writer) is not None)
                assert not is_alive(pid)
                await eventually(reader.member, "key", [b"later"])

    trio.run(main)


def test_bad_records_are_refused_by_the_storing_node_and_by_the_reader(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with real_nodes(tmp_path, 2) as (victim, bystander):
                await victim.directory.announce("key", b"honest", 120.0)
                async with real_node(tmp_path / "evil") as evil:
                    await evil.join(victim)
                    await kill_dht_process(evil, for_good=True)
                    with hostile(evil, victim, "key") as attacker:
                        assert attacker.stdout is not None
                        line = await trio.to_thread.run_sync(attacker.stdout.readline)
                        assert not any(json.loads(line).values()), line
                        # Two were stored, one is read. A lookup does without whom it asked and heard nothing of in time, so
                        # on a busy machine more than one may be needed.
                        while refused(victim).get("forged", 0) < 3:
                            found = await victim.directory.look_up("key")
                            assert [record.value for record in found] == [b"honest"]
                            victim.directory.peer_connected()
                            await trio.sleep(0.2)
                        await eventually(bystander.member, "key", [b"honest"])
                assert refused(victim).keys() == {
                    "forged", "foreign", "too-far", "too-large", "malformed",
                }  # fmt: skip

    trio.run(main)


def test_no_process_is_left_when_the_daemon_is_killed(tmp_path: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.node.dht.lonely_daemon", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    with daemon.stdout as pipe:
        pids = json.loads(pipe.readline())
    assert all(is_alive(pid) for pid in pids)
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()

    trio.run(until, lambda: not any(is_alive(pid) for pid in pids), 5.0)


async def kill_dht_process(node: RealNode, *, for_good: bool = False) -> None:
    """SIGKILL it; `for_good` also keeps its directory from starting another, so that p2pd is free for a liar."""
    await until(lambda: pid_of(node) is not None)
    if for_good:
        node.directory._p2pd_socket = Path("/nonexistent")
    pid = pid_of(node)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: node.directory.status()["pid"] != pid)


def pid_of(node: RealNode) -> Any:
    return node.directory.status()["pid"]


def hostile(node: RealNode, victim: RealNode, key: str) -> subprocess.Popen[bytes]:
    arguments = ["--p2pd", str(node.host.control_path), "--victim", str(victim.peer)]
    arguments += ["--runtime-dir", str(node.runtime_dir), "--key", key]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.node.dht.hostile", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def greeted(node: RealNode) -> set[str]:
    """How the peers of one node answered when it greeted them last."""
    return set(node.directory.status()["greeted"].values())


def refused(node: RealNode) -> dict[str, int]:
    counts: dict[str, int] = node.directory.status()["records_refused"]
    return counts


def is_alive(pid: int) -> bool:
    """False for a zombie too: it runs nothing and only waits to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
