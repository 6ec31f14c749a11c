"""The other side of benchmarks.transport: hivemind's own client on a p2pd that runs already. Shares no code with ours.

What is sent is the same: 8 bytes of length, the data, one byte back when all of it is in memory; on streams that stay
open. hivemind's own `send_raw_data` and `receive_raw_data` do the work, with the chunk size that is fastest for them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from hivemind.p2p import P2P, PeerID
from hivemind.utils.multiaddr import Multiaddr

from benchmarks.workers import answer_line

HANDLER = "benchmark-hivemind"


async def main(control: str) -> None:
    """Attach to the p2pd behind `control`, then answer questions until the input ends."""
    p2p = await P2P.replicate(Multiaddr(f"/unix{control}"))
    await p2p.add_binary_stream_handler(HANDLER, _serve)
    answer_line({"peer": p2p.peer_id.to_base58()})
    side = _Side(p2p)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer_line(await side.do(json.loads(line)))
    await p2p.shutdown()


async def _serve(_: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            await P2P.receive_raw_data(reader)
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()
            return
        writer.write(b"!")
        await writer.drain()


class _Side:
    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def do(self, question: dict[str, Any]) -> dict[str, Any]:
        match question["do"]:
            case "cpu":
                return {"cpu_seconds": time.process_time()}
            case "stream":
                return await self._stream(
                    question["peer"],
                    question["streams"],
                    question["bytes"],
                    question["chunk_bytes"],
                )
            case other:
                raise ValueError(other)

    async def _stream(
        self, peer: str, streams: int, byte_count: int, chunk_bytes: int
    ) -> dict[str, Any]:
        while len(self._open) < streams:
            _, reader, writer = await self._p2p.call_binary_stream_handler(
                PeerID.from_base58(peer), HANDLER
            )
            self._open.append((reader, writer))
        data = b"\x5a" * (byte_count // streams)

        async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await P2P.send_raw_data(data, writer, chunk_size=chunk_bytes)
            await reader.readexactly(1)

        began_s, began_cpu_s = time.monotonic(), time.process_time()
        await asyncio.gather(*(send(*pair) for pair in self._open[:streams]))
        return {
            "seconds": time.monotonic() - began_s,
            "cpu_seconds": time.process_time() - began_cpu_s,
        }


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
