"""A daemon reduced to its directory, to be killed by a test: prints the pids of its children, then waits.

python -m tests.node.dht.lonely_daemon FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from tests.node.dht.real import real_node, until


async def _main() -> None:
    async with real_node(Path(sys.argv[1])) as node:
        await until(lambda: node.directory.status()["pid"] is not None)
        pids = [node.host.p2pd_pid, node.directory.status()["pid"]]
        print(json.dumps(pids), flush=True)  # noqa: T201
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main)
