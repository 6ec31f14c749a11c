"""One process of the other side of benchmarks.moe_layer: hivemind's Server, or its RemoteMixtureOfExperts."""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("HIVEMIND_MEMORY_SHARING_STRATEGY", "file_descriptor")
import torch
from hivemind import DHT, RemoteMixtureOfExperts
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.server import Server
from hivemind.utils.tensor_descr import BatchTensorDescriptor

from benchmarks import moe_layer_work as work
from benchmarks.workers import answer_line

PREFIX = "ffn"
HANDLERS = 2
"""Connection handlers: processes of each server, four servers on a small machine."""


def serve(index: int, at: str) -> None:
    """Host 16 experts until the input ends."""
    dht = DHT(initial_peers=[at] if at else [], start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    backends = {}
    for name in work.names(index, PREFIX):
        module = work.make_expert()
        backends[name] = ModuleBackend(
            name,
            module,
            optimizer=torch.optim.SGD(module.parameters(), lr=work.RATE),
            args_schema=(BatchTensorDescriptor(work.WIDTH),),
            max_batch_size=1 << 10,
        )
    server = Server(dht, backends, num_connection_handlers=HANDLERS, device="cpu", start=True)
    server.ready.wait()
    answer_line({"at": str(dht.get_visible_maddrs()[0])})
    for _ in sys.stdin:
        answer_line({})
    server.shutdown()
    dht.shutdown()


def ask(at: str) -> None:
    """Train a layer of them."""
    dht = DHT(initial_peers=[at], start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    layer = RemoteMixtureOfExperts(
        in_features=work.WIDTH,
        grid_size=work.GRID,
        dht=dht,
        uid_prefix=f"{PREFIX}.",
        k_best=work.K,
        k_min=1,
        allow_zero_outputs=True,
    )
    steps = work.Steps(layer)
    until_s = time.monotonic() + 60.0
    while time.monotonic() < until_s:  # servers declare their experts when they are ready
        failed = steps.failed
        steps.step()
        if steps.failed == failed:
            break
    answer_line({})
    for line in sys.stdin:
        question = json.loads(line)
        if question.get("silent"):
            # By default a client waits for a silent expert without end. This is what its authors ran with.
            layer.timeout_after_k_min = 1.0
            layer.forward_timeout = layer.backward_timeout = 30.0
        answer_line(work.answer(question, steps))
    dht.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, index, at = (*sys.argv[1:], "")[:3]
    if what == "serve":
        serve(int(index), at)
    else:
        ask(at)
