"""What a whole model is that maps samples to classes, and its initial weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from protocols.ids import PeerID
from swarm.models.initial import fill_uniform


@dataclass(frozen=True, slots=True)
class SampleShape:
    """What goes in and comes out."""

    channels: int
    height: int
    width: int
    classes: int


def peer_seed(seed: int, peer: PeerID) -> int:
    """Return the seed of a peer's independent start, where peers are not to start from the same weights."""
    digest = hashlib.sha256(b"murmura independent start:%d:" % seed + peer).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def build_quietly(make: Callable[[], nn.Module], dtype: str) -> nn.Module:
    """Make a module without moving torch's global generator; its weights are filled in afterwards."""
    with torch.random.fork_rng(devices=[]):
        return make().to(getattr(torch, dtype))


@torch.no_grad()
def fill_for_relu(module: nn.Module, *, seed: int, output: str) -> None:
    """Fill the weights so that signals keep their size through ReLUs (He et al. 2015, arXiv:1502.01852); biases with 0.

    Args:
      output: name of the weight without a ReLU behind it.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        inputs = math.prod(parameter.shape[1:])
        gain = 1.0 if name == output else 2.0
        fill_uniform(parameter, name=name, deviation=math.sqrt(gain / inputs), seed=seed)
