"""Real nodes for tests, as far as the directory needs them: p2pd, the dht process, DhtDirectory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio
from trio_typing import TaskStatus

from node.clock import unix_s
from node.dht.client import DhtDirectory, DirectoryTimes
from node.identity import Identity, verify_signature
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from protocols.ids import PeerID
from tests.contracts.directory import Member

QUICK = DirectoryTimes(check_every_s=2.0, retry_max_s=0.5)
"""Checks often, so that tests wait less; deadlines are the real ones."""
PATIENCE_S = 30.0
"""For the machine to start some processes while others run their tests too."""


@dataclass(frozen=True, slots=True)
class RealNode:
    """One node's directory and what it stands on."""

    host: P2pdHost
    directory: DhtDirectory
    runtime_dir: Path

    @property
    def peer(self) -> PeerID:
        return self.host.peer_id

    @property
    def member(self) -> Member:
        return Member(self.peer, self.directory)

    async def joined(self) -> None:
        """Wait until the directory has met somebody."""
        await until(lambda: self.directory.status()["state"] == "joined")

    async def join(self, other: RealNode) -> None:
        """Connect the transport, which is all the directory needs."""
        await self.host.connect(other.host.addresses()[0])
        self.directory.peer_connected()


@asynccontextmanager
async def real_node(folder: Path) -> AsyncIterator[RealNode]:
    """Run one node, not yet joined to anybody."""
    identity, options = _prepare(folder)
    async with trio.open_nursery() as nursery, P2pdHost.open(options, identity.peer_id) as host:
        directory = DhtDirectory(
            p2pd_socket=host.control_path,
            runtime_dir=options.runtime_dir,
            signer=identity,
            verify=verify_signature,
            peers=host.peers,
            now_s=unix_s,
            rng=random.Random(str(folder)),
            times=QUICK,
        )

        async def replace_process() -> None:
            directory.transport_restarted()

        host.on_restart(replace_process)
        await nursery.start(directory.run)
        yield RealNode(host, directory, options.runtime_dir)
        nursery.cancel_scope.cancel()


def _prepare(folder: Path) -> tuple[Identity, P2pdOptions]:
    folder.mkdir(parents=True, exist_ok=True)
    identity = Identity.load_or_create(folder / "identity.key")
    options = P2pdOptions(
        identity_path=folder / "identity.key",
        runtime_dir=folder / "run",
        listen=("/ip4/127.0.0.1/tcp/0",),
        autonat=False,
    )
    return identity, options


@asynccontextmanager
async def real_nodes(folder: Path, count: int) -> AsyncIterator[list[RealNode]]:
    """Start nodes at the same instant and join each to the first."""
    nodes: dict[int, RealNode] = {}

    async def keep(index: int, task_status: TaskStatus[None]) -> None:
        async with real_node(folder / str(index)) as node:
            nodes[index] = node
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for index in range(count):
                starting.start_soon(nursery.start, keep, index)
        ordered = [nodes[index] for index in range(count)]
        for node in ordered[1:]:
            await node.join(ordered[0])
        for node in ordered:
            await node.joined()
        yield ordered
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition()` is true. Raises AssertionError when it never is."""
    with trio.move_on_after(patience_s):
        while not condition():  # noqa: ASYNC110 - it asks other processes
            await trio.sleep(0.02)
        return
    raise AssertionError("it did not come about in time")
