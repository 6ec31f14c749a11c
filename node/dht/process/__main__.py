"""The entry point of the dht process."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from node.dht.process import lean_hivemind  # noqa: F401 - must come before hivemind

# isort: split
from hivemind.utils.logging import use_hivemind_log_handler

from node.dht.process.directory_node import DirectoryNode
from node.dht.process.serving import serve

log = logging.getLogger(__name__)


async def _wait_until_p2pd_is_gone(p2pd: Path) -> None:
    """Hold one silent connection to p2pd. hivemind does not notice that p2pd died; this does, at once."""
    reader, writer = await asyncio.open_unix_connection(str(p2pd))
    try:
        await reader.read(1)
    finally:
        writer.close()


async def _run(control: socket.socket, p2pd: Path, runtime_dir: Path) -> str:
    """Serve until the daemon or p2pd is gone; return which."""
    node = await DirectoryNode.create(p2pd, runtime_dir)
    daemon_gone = asyncio.create_task(serve(control, node.answer))
    p2pd_gone = asyncio.create_task(_wait_until_p2pd_is_gone(p2pd))
    done, _ = await asyncio.wait({daemon_gone, p2pd_gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return "the daemon hung up" if daemon_gone in done else "p2pd is gone"


def _die_with_parent() -> None:
    """Ask the kernel to kill us when the thread that started us ends: no orphan, even after a SIGKILL."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    """Parse the arguments and serve."""
    _die_with_parent()
    parser = argparse.ArgumentParser(prog="node.dht.process", description="Started by the daemon.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--p2pd", type=Path, required=True)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    arguments = parser.parse_args()
    use_hivemind_log_handler("nowhere")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("hivemind").setLevel(logging.ERROR)  # its warnings quote what peers sent
    control = socket.socket(fileno=arguments.control_fd)
    try:
        reason = asyncio.run(_run(control, arguments.p2pd, arguments.runtime_dir))
    except OSError as error:  # p2pd is just being restarted: the daemon starts us again
        log.warning("p2pd cannot be reached: %s", error)
        return 1
    log.info("leaving: reason=%s pid=%d", reason, os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
