"""The other side of benchmarks.expert_rpc: hivemind's Server, or its RemoteExpert. Shares no code with ours but the modules."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from hivemind import DHT
from hivemind.moe.client.expert import RemoteExpert
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.server import Server
from hivemind.p2p import PeerID
from hivemind.utils.tensor_descr import BatchTensorDescriptor

from benchmarks.expert_rpc_work import SPECS, in_threads, make_module, rows_of
from benchmarks.workers import answer_line

HANDLERS = 4
"""Connection handlers: what hivemind recommends for one expert."""


def serve(threads: int) -> None:
    """Host the experts until the input ends."""
    torch.set_num_threads(threads)
    dht = DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    backends = {}
    for name, spec in SPECS.items():
        module = make_module(name)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-4) if spec.backward else None
        backends[f"{name}.0"] = ModuleBackend(
            f"{name}.0",
            module,
            optimizer=optimizer,
            args_schema=(BatchTensorDescriptor(spec.width),),
            max_batch_size=1 << 14,
        )
    server = Server(dht, backends, num_connection_handlers=HANDLERS, device="cpu", start=True)
    address = str(dht.get_visible_maddrs()[0])
    answer_line({"address": address, "peer": dht.peer_id.to_base58()})
    for _ in sys.stdin:
        answer_line({})
    server.shutdown()
    dht.shutdown()


def ask(address: str, peer: str) -> None:
    """Call the experts of a server."""
    dht = DHT(initial_peers=[address], start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    p2p = RemoteExpertWorker.run_coroutine(dht.replicate_p2p())
    experts = {
        name: RemoteExpert(ExpertInfo(f"{name}.0", PeerID.from_base58(peer)), p2p) for name in SPECS
    }
    answer_line({})
    for line in sys.stdin:
        answer_line(_do(json.loads(line), experts))
    dht.shutdown()


def _do(question: dict[str, Any], experts: dict[str, RemoteExpert]) -> dict[str, Any]:
    name, at_once = question["name"], question["at_once"]
    expert, spec = experts[name], SPECS[name]

    def call() -> None:
        if spec.backward:
            x = rows.detach().requires_grad_()
            y = expert(x)
            torch.autograd.grad(y, x, y.detach() / spec.rows)
        else:
            with torch.no_grad():
                expert(rows)

    rows = rows_of(name)
    with ThreadPoolExecutor(at_once) as pool:
        return in_threads(pool, call, question["calls"], at_once).answer()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        ask(sys.argv[2], sys.argv[3])
