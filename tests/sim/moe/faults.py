"""The faults that only moe has: busy hosts, slow looks into the directory, and who lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.engine.faults import Faults, Injector, count, never, share, source
from tests.sim.moe.liar import LyingNode

if TYPE_CHECKING:
    from tests.sim.moe.world import MoeWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeFaults(Faults):
    """How much of each kind this run has."""

    restarts_with_state: int = never(0)
    """Experts and snapshots are not kept on a disk: a node that comes back has nothing."""
    topic_loss: float = never(0.0)
    topic_repeats: float = never(0.0)
    """Nothing is published."""
    busy: float = share(0.3)
    """Share of the calls that a host has no memory for."""
    slow_looks: float = share(0.3)
    """Share of the looks into the directory that take up to twelve seconds."""
    lying_nodes: int = count(1)
    """Nodes that also claim, offer and answer what is not so."""


class MoeInjector(Injector):
    """Plans the faults of one moe run between 0 and `until_s`."""

    def __init__(self, world: MoeWorld, until_s: float) -> None:
        super().__init__(world, until_s)
        self._moe = world

    def plan(self) -> None:
        """Put every drawn fault at a random time."""
        super().plan()
        world = self._moe
        chosen = source(world.seed, "who lies")
        for peer in chosen.sample(list(world.peers.values()), world.faults.lying_nodes):
            LyingNode(world, peer).start(self._until_s)
