"""The faults that only moe has: busy hosts, slow looks into the directory, and who lies."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.sim.engine.faults import Faults, Injector, count, never, share, source
from tests.sim.moe.liar import LyingNode

if TYPE_CHECKING:
    from typing import Self

    from tests.sim.moe.world import MoeWorld


_OUT_S: Final = 30.0
_ALONE: Final = 0.2
"""Of the runs whose power goes this share has nothing worse."""
_HARMLESS: Final = frozenset(
    ("repeat", "reordering", "stale_directory", "clock_skew", "late_reports", "busy", "slow_looks")
)
"""Kinds that take nobody away and make nobody seem dead."""


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

    @classmethod
    def draw(cls, seed: int) -> Self:
        """Draw as ever; in some runs power goes and nothing worse happens: what disks are worth is seen there."""
        drawn = super(MoeFaults, cls).draw(
            seed
        )  # a class with slots is another one than its body saw
        if not drawn.power_losses or source(seed, "power goes alone").random() >= _ALONE:
            return drawn
        worse = [name for name in cls.names() if name not in {"power_losses", *_HARMLESS}]
        return dataclasses.replace(drawn, **{name: type(getattr(drawn, name))() for name in worse})

    @property
    def only_power_goes(self) -> bool:
        """Whether nothing worse happens."""
        return bool(self.power_losses) and _HARMLESS.issuperset(
            kind for kind in self.kinds() if kind != "power_losses"
        )


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
