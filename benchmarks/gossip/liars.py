"""What dishonest peers send, and where they sit: at most three of any honest peer's neighbours lie."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from benchmarks.gossip.swarm import Lie, Swarm, names
from protocols.gossip.settings import GossipSpec
from protocols.gossip.topology import Topology

LITTLE_IS_ENOUGH_Z: Final = 1.5
"""Deviations from the honest mean, as in the experiments of Baruch et al. 2019, arXiv:1902.06156."""


def _scaled(factor: float) -> Lie:
    return lambda swarm, numbers: numbers * factor


def _a_little_is_enough(swarm: Swarm, numbers: Tensor) -> Tensor:
    """Go as far from the honest models' mean as hides among them. The liar knows all of them, which is generous."""
    honest = swarm.population.weights[swarm.honest]
    return honest.mean(0) - LITTLE_IS_ENOUGH_Z * honest.std(0)


LIES: Final[dict[str, Callable[[Swarm, Tensor], Tensor]]] = {
    "flip": _scaled(-1.0),
    "flip_times_1000": _scaled(-1000.0),
    "zero": lambda swarm, numbers: torch.zeros_like(numbers),
    "variance_times_10000": _scaled(100.0),
    "a_little_is_enough": _a_little_is_enough,
}


def place_liars(
    peers: int, liars: int, *, neighbours_max: int, spec: GossipSpec, seed: int
) -> frozenset[int]:
    """Draw who lies, so that no honest peer has more than `neighbours_max` liars among its neighbours."""
    everybody = names(peers)
    index = {peer: number for number, peer in enumerate(everybody)}
    topology = Topology(spec.neighbours, degree=spec.degree, seed=seed)
    edges = [{index[other] for other in topology.neighbours(peer, everybody)} for peer in everybody]
    rng = random.Random(f"liars:{seed}")
    while True:
        chosen: set[int] = set()
        for candidate in rng.sample(range(peers), peers):
            more = chosen | {candidate}
            if all(len(edges[i] & more) <= neighbours_max for i in range(peers) if i not in more):
                chosen = more
            if len(chosen) == liars:
                return frozenset(chosen)
