"""One process of our side of benchmarks.moe_layer: a script with a server, or with a layer."""

from __future__ import annotations

import functools
import json
import sys

import torch

import murmura
from benchmarks import moe_layer_work as work
from benchmarks.workers import answer_line

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def serve(index: int, invite: str) -> None:
    """Host 16 experts until the input ends."""
    run = murmura.experts_run("layer", {"ffn": work.GRID}, width=work.WIDTH, floor_s=work.LATE_S)
    with murmura.join(invite, run=None if invite else run, listen=LISTEN) as swarm:
        experts = {name: work.make_expert() for name in work.names(index, "ffn")}
        server = murmura.Server(
            swarm, experts, optimizer=functools.partial(torch.optim.SGD, lr=work.RATE)
        )
        answer_line({"at": swarm.invite})
        for _ in sys.stdin:
            answer_line(server.steps)


def ask(invite: str) -> None:
    """Train a layer of them."""
    with murmura.join(invite, listen=LISTEN) as swarm:
        every = work.GRID[0] * work.GRID[1]
        layer = murmura.RemoteMixtureOfExperts(swarm, "ffn", k=work.K, wait_for=every)
        answer_line({})
        steps = work.Steps(layer)
        for line in sys.stdin:
            answer_line(work.answer(json.loads(line), steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, index, at = (*sys.argv[1:], "")[:3]
    if what == "serve":
        serve(int(index), at)
    else:
        ask(at)
