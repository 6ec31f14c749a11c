"""No stage is left without a peer while a peer could serve it: who holds the last copy leaves only when another has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import GaveUp, StateReached

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

_PATIENCE_SILENCES = 40
"""After healing: to notice who is gone, to move somebody, to fetch the state, and once more when the mover was slow."""


class LastCopyStays(Checker):
    """Looks at each member that is let go, and at the end at whether every stage has found its peers."""

    promise = "last copy stays"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._loaded: set[tuple[int, PeerID]] = set()

    @on(StateReached)
    def state_reached(self, peer: PipelinePeer, what: StateReached) -> None:
        self._loaded.add((what.stage, peer.peer_id))

    @on(GaveUp)
    def gave_up(self, peer: PipelinePeer, what: GaveUp) -> None:
        """Another member must have been seen with the state, unless everybody leaves."""
        stage, record = peer.stage, peer.ledger.record
        if record is None or not stage.loaded or stage.step < record.step:
            return
        if stage.step == self.world.first_step:
            return  # anybody can build it
        # One that wants to leave, too, is held to the same, and looked at when it is let go.
        replicas = record.view.replicas(stage.stage) if stage.stage is not None else []
        if any((stage.stage, m.peer) in self._loaded for m in replicas):
            return
        if not all(self.world.peers[m.peer].draining for m in record.members):
            raise self.broken(f"{peer.name} was let go with the last copy of stage {stage.stage}")

    def ended(self) -> None:
        record = self.world.newest_record
        assert record is not None
        if (
            self.world.lost() is not None
            or self.world.healed_for_s < _PATIENCE_SILENCES * self.world.settings.silence_s
        ):
            return
        stages = self.world.settings.stages
        serving = {
            m.stage
            for m in record.members
            if self.world.peers[m.peer].up and self.world.peers[m.peer].stage.loaded
        }
        bare = [stage for stage in range(stages) if stage not in serving]
        if bare and len(record.members) >= stages:
            raise self.broken(f"nobody serves stages {bare} long after healing")
