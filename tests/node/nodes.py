"""Whole nodes on the in-memory network: everything of a daemon but its processes, sockets and signals."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from node.config import load
from node.daemon import Startup, assemble
from node.identity import Identity
from node.joining import Joining
from node.life import NodeLife
from node.membership import resolve
from node.network import Network
from node.node import Node
from node.public import serve_public
from protocols.ports import Directory
from tests.fakes.directory import MemoryDht
from tests.fakes.host import MemoryNetwork

RUN_TOML = f"""
name = "try"
[data]
pattern = "{{stdlib}}/**/*.py"
sha256 = "{"0" * 64}"
"""


@dataclasses.dataclass(slots=True)
class World:
    """What the nodes of one test share."""

    folder: Path
    network: MemoryNetwork
    dht: MemoryDht
    nursery: trio.Nursery
    _names: int = 0

    def run_file(self, text: str = RUN_TOML) -> str:
        path = self.folder / "run.toml"
        path.write_text(text)
        return str(path)

    async def node(self, name: str = "", **flags: Any) -> Node:
        """Start a node that does everything but train. The same name is the same identity and state folder."""
        self._names += 1
        startup = make_startup(self.folder / (name or f"node{self._names}"), **flags)
        host = self.network.join(startup.identity.peer_id)
        directory: Directory = self.dht.directory(startup.identity)
        config = startup.effective.config
        life = NodeLife(
            isolated_after_s=config.isolated_after_s,
            first=startup.membership.first,
            drain_s=config.drain_s,
        )
        network = Network(host=host, directory=directory)
        node = assemble(startup, life, network, random.Random(self._names))
        node.started_unix_s = self.dht.now_s()  # of the clock by which records are signed here
        await serve_public(node)
        await self.nursery.start(node.caller.run)
        life.started()
        self.nursery.start_soon(node.services.keep_running, Joining(node))
        return node


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    """Open a network and a directory for nodes; all of them end with the block."""
    async with MemoryNetwork.open() as network, trio.open_nursery() as nursery:
        yield World(folder, network, MemoryDht(), nursery)
        nursery.cancel_scope.cancel()


def make_startup(state_dir: Path, **flags: Any) -> Startup:
    """Return what a daemon knows before its event loop runs, with its folders made."""
    flags = {"state_dir": str(state_dir), **flags}
    effective = load(flags, environ={"HOME": str(state_dir)})
    effective.paths.prepare()
    identity = Identity.load_or_create(effective.paths.identity)
    return Startup(
        effective=effective,
        identity=identity,
        membership=resolve(effective.config, effective.paths, identity.peer_id),
        descriptors_max=1024,
    )


def invite_of(node: Node) -> str:
    """Return what `murmura invite` prints."""
    return node.membership.invite(node.host.addresses()).to_text()
