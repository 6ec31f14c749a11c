"""Train a small network together with whoever else runs this script.

    python examples/gossip.py                  begins a run and prints an invite
    python examples/gossip.py murmura1...      takes part in it

Each copy keeps its own part of the digits (scikit-learn's) to itself; only models travel.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import murmura

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("invite", nargs="?", default="")
parser.add_argument("--part", type=int, default=0, help="which labels this copy sees: 0, 1 or 2")
parser.add_argument("--seconds", type=float, default=60.0)
parser.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0")
options = parser.parse_args()

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1  # (1797, 64)
y = torch.tensor(digits.target)  # (1797,)
train, test = slice(0, 1400), slice(1400, None)
mine = (y[train] % 3 == options.part).nonzero().flatten()  # a third of the labels, no others

model = torch.nn.Sequential(
    torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
)  # fmt: skip
sgd = torch.optim.SGD(model.named_parameters(), lr=0.01, momentum=0.9)

strategy = murmura.Gossip(batch_every_s=0.05, neighbours_to_start=2)
run = None if options.invite else murmura.script_run("digits in thirds", sgd, strategy)
with murmura.join(options.invite, run=run, listen=(options.listen,)) as swarm:
    print(f"others join with: python examples/gossip.py {swarm.invite} --part 1", flush=True)
    optimizer = murmura.Optimizer(swarm, sgd)
    until = time.monotonic() + options.seconds
    for batch in itertools.count(1):
        chosen = mine[torch.randint(len(mine), (16,))]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[train][chosen]), y[train][chosen])
        loss.backward()
        optimizer.step(loss.item())
        if batch % 50 == 0:
            right = (model(x[test]).argmax(1) == y[test]).float().mean().item()
            print(f"batch {batch}: {100 * right:.1f} % of all ten digits", flush=True)
        if time.monotonic() > until:
            break
