"""The faults that only the pipeline has: members and strangers that lie, damaged gradients, leaders cut off as they decide.

A new fault:
  - a field, with its share, count or chance as the default (0 or False: absent);
  - if something happens at some time: a method of `PipelineInjector` that does it, planned with a `source` of its own; if a
    peer is another one than it should be: `peer`, or `lying_member`; if it is a stranger: `liar`;
  - its end in `PipelineWorld.mend`: a run must be able to go on then;
  - a planted fault (`planted`) that shows only where this one happens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.engine.faults import Faults, Injector, count, share, source
from tests.sim.pipeline import contest
from tests.sim.pipeline.forger import Forger
from tests.sim.pipeline.liar import Liar, RogueTrainer
from tests.sim.pipeline.lying_member import LyingMember

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFaults(Faults):
    """How much of each kind this run has. Times are in units of the run's time scale."""

    observers: int = count(2)
    """Peers that only train."""
    broken_gradients: float = share(0.004)
    damaged_bytes: float = share(0.03)
    """Share of a member's reductions that end with other bytes than its replicas have."""
    liars: int = count(1)
    """Strangers that send what the protocol forbids to everybody."""
    rogue_trainers: int = count(2)
    """Strangers that have members count what is leased to others."""
    forgers: int = count(2)
    """Members that also send decisions and reports that everybody must refuse."""
    stage_wishes: float = share(1.0)
    """Share of the peers that ask for a certain stage."""
    hushed_leads: int = count(5)
    """Leads that are cut off in the moment in which they have decided: nobody else knows of it."""
    contested_elections: int = count(12)
    """See `contest`."""
    lying_members: int = count(1)
    """Members that lie about what they counted and reduced."""


class PipelineInjector(Injector):
    """Plans the faults of one pipeline between 0 and `until_s`."""

    def __init__(self, world: PipelineWorld, until_s: float) -> None:
        super().__init__(world, until_s)
        self._pipeline = world

    def plan(self) -> None:
        """Put every drawn fault at a random time."""
        super().plan()
        faults, world = self._pipeline.faults, self._pipeline
        peers = list(world.peers.values())
        moments = source(world.seed, "when leads are hushed")
        for _ in range(faults.hushed_leads):
            at_s = moments.uniform(0, self._until_s)
            world.clock.after(at_s, world.at_next_decision, self._hush)
        contests = source(world.seed, "when elections are contested")
        for _ in range(faults.contested_elections):
            world.clock.after(contests.uniform(0, self._until_s), self._contest, contests)
        for number in range(faults.liars):
            Liar(world, number).start(self._until_s)
        for number in range(faults.rogue_trainers):
            RogueTrainer(world, number).start(self._until_s)
        forging = source(world.seed, "who forges")
        for peer in forging.sample(peers, faults.forgers):
            Forger(world, peer).start(self._until_s)
        chosen = source(world.seed, "who lies")
        hosts = [peer for peer in peers if not peer.observer]
        for peer in chosen.sample(hosts, faults.lying_members):
            LyingMember(world, peer).start()

    def _hush(self, lead: PipelinePeer) -> None:
        """Cut the way out of one that has just decided a record, before it tells anybody; it still hears."""
        world = self._pipeline
        links = [(lead.peer_id, peer) for peer in world.peers if peer != lead.peer_id]
        world.log(f"hush {lead.name}")
        world.network.cut(links)
        world.clock.after(5 * world.settings.silence_s, world.network.join, links)

    def _contest(self, rng: random.Random) -> None:
        world, record = self._pipeline, self._pipeline.newest_record
        if record is not None and record.lead in record.view and world.peers[record.lead].up:
            world.log(f"contest the lead of {record.lead.decode()}")
            world.contest = contest.begin(world, record.lead, rng)
