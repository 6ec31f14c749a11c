"""Host experts for whoever runs moe_trainer.py, on this machine or elsewhere.

python examples/moe_server.py                       begins a run, prints the line for the others
python examples/moe_server.py murmura1... --row 1   hosts the next four experts of the same run
"""

from __future__ import annotations

import argparse
import functools
import time

import torch
from torch import nn

import murmura

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("invite", nargs="?", default="")
parser.add_argument("--row", type=int, default=0, help="of the grid of 4 x 4 experts")
parser.add_argument("--seconds", type=float, default=3600.0)
parser.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0")
options = parser.parse_args()

run = None if options.invite else murmura.experts_run("digits", {"ffn": (4, 4)}, width=64)
experts = {
    f"ffn.{options.row}.{column}": nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    for column in range(4)
}

with murmura.join(options.invite, run=run, listen=(options.listen,)) as swarm:
    server = murmura.Server(swarm, experts, optimizer=functools.partial(torch.optim.Adam, lr=1e-3))
    print(f"others train with: python examples/moe_trainer.py {swarm.invite}", flush=True)
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        server.wait(min(10.0, max(0.0, until - time.monotonic())))
        print(f"steps: {server.steps}", flush=True)
