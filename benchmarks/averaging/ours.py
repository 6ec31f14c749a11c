"""One peer of ours for benchmarks.averaging: an Averager on a p2pd of its own."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trio

from benchmarks.averaging.cases import error_of, sample_of, vector_of
from benchmarks.workers import answer_line
from node.identity import Identity
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from protocols.averaging.settings import AveragingSpec
from protocols.ids import PeerID, RunID
from protocols.replies import Hello
from swarm.averaging.all_reduce import Averager, RoundAbortedError
from swarm.calls import Caller, Guard
from swarm.calls.rates import UNLIMITED
from swarm.endpoints import Endpoints
from swarm.hosting.compute import ComputeThread, torch_threads

RUN = RunID(bytes(32))


async def main(folder: Path, options: dict[str, Any]) -> None:
    """Open a host in `folder`, then answer questions until the input ends."""
    p2pd = P2pdOptions(
        identity_path=folder / "identity.key",
        runtime_dir=folder,
        listen=("/ip4/127.0.0.1/tcp/0",),
        autonat=False,
    )
    identity = Identity.load_or_create(p2pd.identity_path)
    torch.set_num_threads(1)
    async with (
        P2pdHost.open(p2pd, identity.peer_id) as host,
        ComputeThread("codec", prepare=torch_threads(1), queue_max=1024) as codec,
        trio.open_nursery() as nursery,
    ):
        guard = Guard()
        caller = Caller(host, hello=Hello(run=RUN), guard=guard)
        averager = Averager(
            host.peer_id, caller, codec,
            spec=AveragingSpec(group_max=options["group"], exchange_floor_s=20.0),
            codec=options["codec"], rng=random.Random(identity.peer_id),
        )  # fmt: skip
        caller.on_unreachable = averager.lost
        endpoints = Endpoints(
            host, RUN, run_key=None, guard=guard, rates=UNLIMITED, limits=averager.limits
        )
        await nursery.start(caller.run)
        await nursery.start(averager.run)
        await endpoints.open(averager.wire())
        answer_line({"address": host.addresses()[0], "peer": str(host.peer_id)})
        async for line in _lines():
            answer_line(await _do(json.loads(line), host, averager))
        nursery.cancel_scope.cancel()


async def _do(question: dict[str, Any], host: P2pdHost, averager: Averager) -> dict[str, Any]:
    if question["do"] == "meet":
        for address in question["addresses"]:
            await host.connect(address)
        averager.found([PeerID.from_text(peer) for peer in question["peers"]])
        return {}
    peer, version = question["peer"], question["version"]
    if question["do"] == "prepare":
        global _vector
        _vector = await trio.to_thread.run_sync(vector_of, peer, version, question["elements"])
        return {}
    global _spare
    if _spare.shape != _vector.shape:
        _spare = torch.empty_like(_vector)
    began_s = time.monotonic()
    try:
        # hivemind averages in place, and so makes no memory for a mean either.
        done = await averager.average("model", version, _vector, spare=_spare)
    except RoundAbortedError as error:
        return {"failed": error.reason, "seconds": time.monotonic() - began_s}
    seconds = time.monotonic() - began_s
    _spare = done.mean
    if question.get("keep"):
        _vector, _spare = done.mean, _vector
    return {
        "seconds": seconds,
        "members": len(done.group),
        "attempts": done.attempts,
        "gathering_s": done.seconds.gathering_s + done.seconds.agreeing_s,
        "averaging_s": done.seconds.averaging_s,
        "sample": sample_of(done.mean),
        "group": sorted(str(peer) for peer in done.group),
        "error": error_of(done.mean, len(done.group), version),
    }


_vector = torch.zeros(0)
_spare = torch.zeros(0)


async def _lines() -> Any:
    pending = b""
    async with trio.lowlevel.FdStream(0) as pipe:
        async for chunk in pipe:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), json.loads(sys.argv[2]))
