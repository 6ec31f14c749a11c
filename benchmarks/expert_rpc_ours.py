"""One side of benchmarks.expert_rpc: our expert server, or a client of it, on a p2pd of its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import trio

from benchmarks.expert_rpc_work import SPECS, Timed, in_threads, make_module, rows_of
from benchmarks.workers import answer_line
from moe.peer import ExpertPeer, PeerSettings
from node.clock import unix_s
from node.identity import Identity
from node.p2pd.host import P2pdHost
from node.p2pd.process import P2pdOptions
from protocols.experts.uid import ExpertUID, Grid
from protocols.frames import Limits
from protocols.ids import PeerID, RunID
from protocols.ports import DirectoryRecord
from protocols.replies import Hello
from protocols.run import SgdSpec
from swarm.calls import Caller, Guard
from swarm.calls.rates import UNLIMITED
from swarm.endpoints import Endpoints
from swarm.hosting.compute import ComputeThread, torch_threads

RUN = RunID(bytes(32))
SGD = SgdSpec(kind="sgd", lr=1e-4, momentum=0.0, weight_decay=0.0)
LIMITS = Limits(header_bytes_max=4096, body_bytes_max=1 << 28, tensors_max=2)


class _Told:
    """A directory without a network: what the server announced, which its clients are told. Finding experts is not measured."""

    def __init__(self) -> None:
        self.announced: dict[str, bytes] = {}
        self.records: dict[str, DirectoryRecord] = {}

    async def announce(self, key: str, value: bytes, lifetime_s: float) -> bool:
        self.announced[key] = value
        return True

    async def withdraw(self, key: str) -> None:
        self.announced.pop(key, None)

    async def look_up(self, key: str, *, first: Any = None) -> Sequence[DirectoryRecord]:
        return [self.records[key]] if key in self.records else []

    def learn(self, server: PeerID, announced: Mapping[str, str]) -> None:
        self.records = {
            key: DirectoryRecord(server, bytes.fromhex(value), unix_s() + 1e6, unix_s())
            for key, value in announced.items()
        }


async def main(folder: Path, threads: int) -> None:
    """Open a host in `folder`, host the experts, then answer questions until the input ends."""
    options = P2pdOptions(
        identity_path=folder / "identity.key",
        runtime_dir=folder,
        listen=("/ip4/127.0.0.1/tcp/0",),
        autonat=False,
    )
    identity = Identity.load_or_create(options.identity_path)
    torch.set_num_threads(threads)
    async with (
        P2pdHost.open(options, identity.peer_id) as host,
        ComputeThread("compute", prepare=torch_threads(threads), batch_max=1 << 16) as compute,
        trio.open_nursery() as nursery,
    ):
        guard, directory = Guard(), _Told()
        caller = Caller(host, hello=Hello(run=RUN), limits=LIMITS, guard=guard)
        peer = ExpertPeer(
            me=host.peer_id, run=RUN, directory=directory, caller=caller, compute=compute,
            unix_s=unix_s, rate=lambda step: SGD.lr,
            settings=PeerSettings(clip_norm=0.0, staleness_max=1 << 20),
        )  # fmt: skip
        endpoints = Endpoints(host, RUN, run_key=None, guard=guard, rates=UNLIMITED, limits=LIMITS)
        for name, spec in SPECS.items():
            uid = ExpertUID(name, (0,))
            await peer.host(uid, lambda name=name: make_module(name), SGD, row=(spec.width,))  # type: ignore[misc]
        await nursery.start(caller.run)
        await nursery.start(peer.run)
        await endpoints.open(peer.wire())
        while len(directory.announced) < len(SPECS):  # noqa: ASYNC110 - a benchmark, before it begins
            await trio.sleep(0.01)
        announced = {key: value.hex() for key, value in directory.announced.items()}
        answer_line(
            {"address": host.addresses()[0], "peer": str(host.peer_id), "announced": announced}
        )
        async for line in _lines():
            answer_line(await _do(json.loads(line), host, peer, compute, directory))
        nursery.cancel_scope.cancel()


async def _do(
    question: dict[str, Any],
    host: P2pdHost,
    peer: ExpertPeer,
    compute: ComputeThread,
    directory: _Told,
) -> dict[str, Any]:
    if question["do"] == "connect":
        await host.connect(question["address"])
        for name in list(SPECS):
            peer.server.remove(ExpertUID(name, (0,)))
        peer.announce()
        directory.learn(PeerID.from_text(question["peer"]), question["announced"])
        peer.watch([Grid(name, (1,)) for name in SPECS])
        peer.search.refresh()
        while not all(  # noqa: ASYNC110
            peer.view.hosts(ExpertUID(name, (0,)), trio.current_time()) for name in SPECS
        ):
            await trio.sleep(0.01)
        return {}
    name, calls = question["name"], question["calls"]
    if question["do"] == "local":
        expert = peer.server.experts[ExpertUID(name, (0,))]
        return await compute.run_own(_local, peer, expert, rows_of(name), calls)
    timed = await trio.to_thread.run_sync(_remote, peer, name, calls, question["at_once"])
    return timed.answer()


def _remote(peer: ExpertPeer, name: str, calls: int, at_once: int) -> Timed:
    """Call from threads that wait, as a layer does."""
    spec, uid, x = SPECS[name], ExpertUID(name, (0,)), rows_of(name)

    def call() -> None:
        (answered,) = peer.network.forward([(uid, x)], out_row=(spec.width,))
        assert answered is not None
        if spec.backward:
            (grad,) = peer.network.backward([(answered, x, answered.y / spec.rows)])
            assert grad is not None

    with ThreadPoolExecutor(at_once) as pool:
        return in_threads(pool, call, calls, at_once)


def _local(peer: ExpertPeer, expert: Any, x: torch.Tensor, calls: int) -> dict[str, Any]:
    """The same work on the same thread without the network: forward, then forward again, backward and step."""
    hosted = expert.hosted
    began_s = time.monotonic()
    for _ in range(calls):
        with torch.no_grad():
            grad_y = hosted.module(x) / len(x)
        inputs = x.detach().requires_grad_()
        hosted.differentiate(hosted.module(inputs), grad_y, [inputs], count=1)
        hosted.apply(hosted.gradient(), rate=SGD.lr)
    return {"seconds": time.monotonic() - began_s}


async def _lines() -> Any:
    pending = b""
    async with trio.lowlevel.FdStream(0) as pipe:
        async for chunk in pipe:
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
