"""A peer works, begins and leaves in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from protocols.core import DrainWanted
from protocols.gossip.events import (
    Averaged,
    AverageModels,
    Left,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from tests.sim.engine.checker import on
from tests.sim.gossip.checkers.checker import Checker, Life, life_of

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld

_LEAVE_S: Final = 10.0
_SLACK_S: Final = 2.0
_EPS_S: Final = 1e-3


class TrainingNeverWaits(Checker):
    """A peer that has a model always works on it, on one thing at a time; one that has none starts within bounded time."""

    promise = "training never waits"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._busy: set[Life] = set()
        self._began_s: dict[Life, float] = {}
        """The newest batch, by the peer's own clock."""
        self._starting_s: dict[Life, float] = {}

    @on(TrainBatch, TakeSnapshot, AverageModels, RollBack)
    def begins(self, peer: GossipPeer, effect: Any) -> None:
        if life_of(peer) in self._busy:
            raise self.broken(f"{peer.name} is to do two things at once, {effect}")
        steps = self.world.steps
        if isinstance(effect, TrainBatch) and steps and peer.core.standing.trained >= steps:
            raise self.broken(f"{peer.name} trains more than {steps} batches")
        self._busy.add(life_of(peer))
        if isinstance(effect, TrainBatch):
            self._began_s[life_of(peer)] = peer.now_s

    @on(Trained, SnapshotTaken, Averaged, RolledBack)
    def ends(self, peer: GossipPeer, event: Any) -> None:
        self._busy.discard(life_of(peer))

    def looked(self) -> None:
        for peer in self.world.peers.values():
            if not peer.up or peer.stopped or peer.draining or not peer.core.starting:
                self._starting_s.pop(life_of(peer), None)
            if peer.up and not peer.stopped and not peer.draining:
                self._look(peer)

    def _look(self, peer: GossipPeer) -> None:
        now_s = self.world.clock.now_s
        # Nine neighbours may be asked, three at a time, and each may fail to send its model at the very end.
        longest_s = 45.0 + 9 * 2.5 * self.world.deadline_s
        if peer.core.starting:
            if now_s - self._starting_s.setdefault(life_of(peer), now_s) > longest_s:
                raise self.broken(f"{peer.name} has no model after {longest_s:.0f} s")
        elif not peer.core.finished and life_of(peer) not in self._busy and self._may_go_on(peer):
            raise self.broken(f"{peer.name} has a model and does nothing")

    def _may_go_on(self, peer: GossipPeer) -> bool:
        """Tell whether neither the run's pace nor its beginning hold it up."""
        spec, began_s = self.world.spec, self._began_s.get(life_of(peer))
        if began_s is None:
            return len(peer.core.neighbourhood.current) >= spec.neighbours_to_start
        return peer.now_s > began_s + spec.batch_every_s + _EPS_S


class LeavesInTime(Checker):
    """Who is told to leave is gone within ten seconds, whatever is on its way."""

    promise = "leaves in time"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._since_s: dict[Life, float] = {}

    @on(DrainWanted)
    def told(self, peer: GossipPeer, event: DrainWanted) -> None:
        self._since_s.setdefault(life_of(peer), self.world.clock.now_s)

    @on(Left)
    def left(self, peer: GossipPeer, effect: Left) -> None:
        self._since_s.pop(life_of(peer), None)

    def looked(self) -> None:
        now_s = self.world.clock.now_s
        for peer in self.world.peers.values():
            since_s = self._since_s.get(life_of(peer))
            if since_s is None or not peer.up:
                continue
            if peer.stopped:
                self._since_s[life_of(peer)] = now_s
            elif now_s - since_s > _LEAVE_S + _SLACK_S:
                raise self.broken(f"{peer.name} is there {now_s - since_s:.0f} s after its drain")
