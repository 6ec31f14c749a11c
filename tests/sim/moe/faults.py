"""The faults that only moe has: busy hosts, slow looks into the directory, and who lies."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.sim.engine.faults import Faults, Injector, count, never, share, source
from tests.sim.moe.liar import LyingNode

if TYPE_CHECKING:
    from tests.sim.moe.world import MoeWorld


_OUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeFaults(Faults):
    """How much of each kind this run has."""

    power_losses: int = count(2)
    """How often power goes everywhere. All come back within half a minute, in any order, with what is on their disks."""
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
        rng = source(world.seed, "when power goes")
        for _ in range(world.faults.power_losses):
            world.clock.after(rng.uniform(0, self._until_s), self._power_loss, rng)
        for peer in chosen.sample(list(world.peers.values()), world.faults.lying_nodes):
            LyingNode(world, peer).start(self._until_s)

    def _power_loss(self, rng: random.Random) -> None:
        world = self._moe
        if world.healed_s is not None:
            return
        world.log("power goes")
        for peer in world.peers.values():
            if peer.up and not peer.draining:
                peer.crash()
                back_s = world.clock.now_s + world.scaled(_OUT_S * rng.random())
                wait_s = max(0.0, min(back_s, self._until_s) - world.clock.now_s)
                world.clock.after(wait_s, self._restart, peer, True)
