"""One side of benchmarks.transport: a node's Host on its own p2pd, with a Caller and an echoing Service."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import trio

from benchmarks.workers import answer_line
from node.identity import Identity
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from protocols.frames import PREFIX_BYTES, FrameKind, TensorSpec, encode_frame
from protocols.handshake import protocol_of
from protocols.ids import PeerID
from protocols.replies import Hello
from protocols.schema import encode
from swarm.calls import Answer, Caller, Incoming, Service, WireTensor
from swarm.calls.channel import allocate

SERVICE = "benchmark"
DEADLINE_S = 120.0


async def main(folder: Path) -> None:
    """Open a host in `folder`, say where it is, then answer questions until the input ends."""
    options = P2pdOptions(
        identity_path=folder / "identity.key",
        runtime_dir=folder,
        listen=("/ip4/127.0.0.1/tcp/0",),
        autonat=False,
    )
    identity = Identity.load_or_create(options.identity_path)
    async with P2pdHost.open(options, identity.peer_id) as host:
        await Service(host, SERVICE, answer=_answer, accept=lambda peer, hello: None).start()
        answer_line(
            {
                "address": host.addresses()[0],
                "peer": str(host.peer_id),
                "p2pd_pid": host.p2pd_pid,
                "control": str(host.control_path.absolute()),
            }
        )
        side = _Side(host)
        async with trio.open_nursery() as nursery:
            await nursery.start(side.caller.run)
            async for line in _lines():
                answer_line(await side.do(json.loads(line)))
            nursery.cancel_scope.cancel()


async def _answer(incoming: Incoming) -> Answer:
    """Say how many bytes came; small tensors go back, as the output of an expert would."""
    tensors = [tensor for tensor in incoming.tensors if tensor.spec.byte_count < 1 << 20]
    return Answer({"bytes": sum(tensor.spec.byte_count for tensor in incoming.tensors)}, tensors)


class _Side:
    """What the benchmark can ask of one side."""

    def __init__(self, host: P2pdHost) -> None:
        self._host = host
        self.caller = Caller(host, hello=Hello())

    async def do(self, question: dict[str, Any]) -> dict[str, Any]:
        match question["do"]:
            case "connect":
                await self._host.connect(question["address"])
                return {}
            case "cpu":
                return {"cpu_seconds": time.process_time()}
            case "stream":
                return await self._stream(
                    PeerID.from_text(question["peer"]), question["streams"], question["bytes"]
                )
            case "small":
                return await self._small(
                    PeerID.from_text(question["peer"]), question["calls"], question["at_once"]
                )
            case "open":
                return await self._open(PeerID.from_text(question["peer"]), question["count"])
            case other:
                raise ValueError(other)

    async def _stream(self, peer: PeerID, streams: int, byte_count: int) -> dict[str, Any]:
        """Send `byte_count` bytes in one call per stream, all at once."""
        data = allocate(byte_count // streams)
        data[:] = b"\x5a" * len(data)
        tensor = WireTensor(TensorSpec("uint8", (len(data),)), data)

        async def call() -> None:
            answer = await self.caller.call(
                peer, SERVICE, {"for": "stream"}, [tensor], deadline_s=DEADLINE_S
            )
            assert answer.message == {"bytes": len(data)}

        began_s, began_cpu_s = time.monotonic(), time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(call)
        return {
            "seconds": time.monotonic() - began_s,
            "cpu_seconds": time.process_time() - began_cpu_s,
        }

    async def _small(self, peer: PeerID, calls: int, at_once: int) -> dict[str, Any]:
        """Make calls of a 4 kB tensor each way, `at_once` at a time."""
        tensor = WireTensor(TensorSpec("float32", (32, 32)), memoryview(bytearray(4096)))

        async def call_in_turn() -> None:
            for _ in range(calls // at_once):
                await self.caller.call(
                    peer, SERVICE, {"for": "small"}, [tensor], deadline_s=DEADLINE_S
                )

        began_s = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(call_in_turn)
        return {"seconds": time.monotonic() - began_s}

    async def _open(self, peer: PeerID, count: int) -> dict[str, Any]:
        """Open streams, one after the other; one is open when the peer has answered our HELLO on it."""
        hello = encode_frame(FrameKind.HELLO, encode(Hello()))
        seconds = []
        for _ in range(count):
            began_s = time.monotonic()
            stream = await self._host.open_stream(peer, protocol_of(SERVICE))
            await stream.send_all(hello)
            await stream.receive_into(memoryview(bytearray(PREFIX_BYTES)))
            seconds.append(time.monotonic() - began_s)
            await stream.aclose()
        return {"seconds": seconds}


async def _lines() -> Any:
    pending = b""
    async with trio.lowlevel.FdStream(0) as pipe:
        async for chunk in pipe:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
