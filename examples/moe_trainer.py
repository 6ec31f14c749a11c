"""Train a small network whose middle layer lives on other people's machines.

python examples/moe_trainer.py murmura1...     the line that moe_server.py prints
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import murmura

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("invite")
parser.add_argument("--batches", type=int, default=300)
parser.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0")
options = parser.parse_args()

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1  # (1797, 64)
y = torch.tensor(digits.target)  # (1797,)
train, test = slice(0, 1400), slice(1400, None)

with murmura.join(options.invite, listen=(options.listen,)) as swarm:
    mixture = murmura.RemoteMixtureOfExperts(swarm, "ffn", k=2)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), mixture, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for batch in range(1, options.batches + 1):
        chosen = torch.randint(1400, (64,))
        loss = F.cross_entropy(model(x[train][chosen]), y[train][chosen]) + 0.01 * mixture.balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if batch % 50 == 0:
            with torch.no_grad():
                right = (model(x[test]).argmax(1) == y[test]).float().mean().item()
            print(f"batch {batch}: {100 * right:.1f} % right", flush=True)
