"""The faults that only gossip has: training that diverges, models that are refused, busy peers, and who lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.engine.faults import Faults, Injector, count, never, share, source
from tests.sim.gossip.liar import LyingNeighbour, Stranger

if TYPE_CHECKING:
    from tests.sim.gossip.world import GossipWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipFaults(Faults):
    """How much of each kind this run has."""

    restarts_with_state: int = never(0)
    """Nothing is kept on a disk: a peer that comes back is a newcomer."""
    topic_loss: float = never(0.0)
    topic_repeats: float = never(0.0)
    """Nothing is published."""
    divergence: float = share(0.05)
    """Share of the batches after which the model is not finite, which is seen at once or only when it is copied."""
    diverged_averages: float = share(0.05)
    """Share of the averages that overflow."""
    odd_variances: float = share(0.3)
    """Share of the received models that an average leaves out."""
    busy: float = share(0.3)
    """Share of the pushes that a peer has no memory for."""
    failed_fetches: float = share(0.7)
    """Share of the fetched models that do not come, or are worse than an untrained one."""
    strangers: int = count(2)
    """They push without being peers of the run."""
    lying_neighbours: int = count(1)
    """Peers that also push what everybody must refuse, and give false answers."""


class GossipInjector(Injector):
    """Plans the faults of one gossip run between 0 and `until_s`."""

    def __init__(self, world: GossipWorld, until_s: float) -> None:
        super().__init__(world, until_s)
        self._gossip = world

    def plan(self) -> None:
        """Put every drawn fault at a random time."""
        super().plan()
        faults, world = self._gossip.faults, self._gossip
        for number in range(faults.strangers):
            Stranger(world, number).start(self._until_s)
        chosen = source(world.seed, "who lies")
        for peer in chosen.sample(list(world.peers.values()), faults.lying_neighbours):
            LyingNeighbour(world, peer).start(self._until_s)
