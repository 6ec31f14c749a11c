"""Train a small network together with whoever else runs this script, and seldom speak: every 20 steps all average.

    python examples/diloco.py                  begins a run and prints an invite
    python examples/diloco.py murmura1...      takes part in it

Each copy keeps its own samples of the digits (scikit-learn's) to itself; only averages of what was learned travel.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import murmura

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("invite", nargs="?", default="")
parser.add_argument("--part", type=int, default=0, help="which samples this copy sees: 0, 1 or 2")
parser.add_argument("--seconds", type=float, default=60.0)
parser.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0")
options = parser.parse_args()

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1  # (1797, 64)
y = torch.tensor(digits.target)  # (1797,)
mine = torch.arange(options.part, 1400, 3)
test = slice(1400, None)

model = torch.nn.Sequential(
    torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
)  # fmt: skip
adam = torch.optim.AdamW(model.named_parameters(), lr=1e-3)

strategy = murmura.DiLoCo(local_steps=20, outer_rate=0.7, outer_momentum=0.5, peers_to_start=2)
run = None if options.invite else murmura.script_run("digits in parts", adam, strategy)
with murmura.join(options.invite, run=run, listen=(options.listen,)) as swarm:
    print(f"others join with: python examples/diloco.py {swarm.invite} --part 1", flush=True)
    optimizer = murmura.Optimizer(swarm, adam)
    until = time.monotonic() + options.seconds
    for step in itertools.count(1):
        chosen = mine[torch.randint(len(mine), (16,))]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step(loss.item())
        if step % 20 == 0:  # all that were in this round have the same parameters now
            numbers = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
            right = (model(x[test]).argmax(1) == y[test]).float().mean().item()
            print(
                f"{hashlib.sha256(numbers.tobytes()).hexdigest()[:8]} {100 * right:.1f} %",
                flush=True,
            )
        time.sleep(0.01)  # as if a step took longer
        if time.monotonic() > until:
            break
