"""The faults that only averaging has: exchanges that break between two peers that live, and who lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.averaging.liar import LyingMember, Stranger
from tests.sim.engine.faults import Faults, Injector, count, never, share, source

if TYPE_CHECKING:
    from tests.sim.averaging.world import AveragingWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingFaults(Faults):
    """How much of each kind this run has."""

    restarts_with_state: int = never(0)
    """Nothing is kept on a disk: a peer that comes back is a newcomer."""
    topic_loss: float = never(0.0)
    topic_repeats: float = never(0.0)
    """Nothing is published."""
    broken_pulls: float = share(0.1)
    """Share of the parts that do not arrive, though both peers live."""
    deaths_in_rounds: float = share(0.05)
    """Share of the exchanges in which a member dies; another one takes its place a little later."""
    lost_haves: float = share(0.8)
    """Share of the messages Have that are lost: members know less of each other in the very moment when it counts."""
    strangers: int = count(2)
    """They invite, come and speak without being peers of the run."""
    lying_members: int = count(1)
    """Peers that also send what everybody must refuse, and sums that differ from one asker to the next."""


class AveragingInjector(Injector):
    """Plans the faults of one run between 0 and `until_s`."""

    def __init__(self, world: AveragingWorld, until_s: float) -> None:
        super().__init__(world, until_s)
        self._averaging = world

    def plan(self) -> None:
        """Put every drawn fault at a random time."""
        super().plan()
        faults, world = self._averaging.faults, self._averaging
        for number in range(faults.strangers):
            Stranger(world, number).start(self._until_s)
        chosen = source(world.seed, "who lies")
        for peer in chosen.sample(list(world.peers.values()), faults.lying_members):
            LyingMember(world, peer).start(self._until_s)
