"""The Host on p2pd keeps the contract."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from protocols.ports import Host
from tests.contracts.host import HostContract
from tests.node.p2pd import hosts


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Host, Host]]:
    # pytest's tmp_path is too long for a unix socket on some machines.
    with tempfile.TemporaryDirectory(prefix="mu") as folder:
        async with hosts.two_hosts(Path(folder)) as pair:
            yield pair


@pytest.mark.process
class TestP2pdHost(HostContract):
    def two_hosts(self) -> AbstractAsyncContextManager[tuple[Host, Host]]:
        return two_hosts()
