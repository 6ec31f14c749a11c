"""Real hosts on loopback for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from node.identity import Identity
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


def options_in(folder: Path, *, listen: tuple[str, ...] = LOOPBACK) -> P2pdOptions:
    """Options of a node whose files are in `folder`; nothing leaves this machine."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return P2pdOptions(
        identity_path=folder / "identity.key", runtime_dir=folder, listen=listen, autonat=False
    )


@asynccontextmanager
async def open_host(folder: Path, *, listen: tuple[str, ...] = LOOPBACK) -> AsyncIterator[P2pdHost]:
    """Run one host with an identity of its own."""
    options = options_in(folder, listen=listen)
    identity = Identity.load_or_create(options.identity_path)
    async with P2pdHost.open(options, identity.peer_id) as host:
        yield host


@asynccontextmanager
async def two_hosts(folder: Path) -> AsyncIterator[tuple[P2pdHost, P2pdHost]]:
    async with open_host(folder / "a") as a, open_host(folder / "b") as b:
        yield a, b
