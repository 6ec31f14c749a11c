"""Every committed step's gradient counts every microbatch exactly once at every stage."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.events import ApplyStep
from protocols.ledger.view import Record, ids_of, unpack_ids
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


class ExactlyOnce(Checker):
    """Looks at what the record claims, and at what was really summed.

    A member that lies may claim what its gradient does not hold: what honest members claim is in the sum once all the same.
    """

    promise = "exactly once"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._right: dict[int, Counter[int]] = {}
        """Stage -> the content that was found right last."""

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        if not record.commits_step or before is None:
            return
        stage_of = {member.peer: member.stage for member in before.members}
        claimed = [Counter[int]() for _ in range(self.world.settings.stages)]
        for entry in record.tallies:
            claimed[stage_of[entry.peer]].update(ids_of(unpack_ids(entry.counted)))
        for stage, counted in enumerate(claimed):
            self._check(counted, f"record {record.index} says that stage {stage}")

    @on(ApplyStep)
    def step_applied(self, peer: PipelinePeer, effect: ApplyStep) -> None:
        record, stage = effect.record, peer.stage.stage
        assert stage is not None
        content = peer.stage.finished[record.stages[stage].gradient_hash]
        liars = self.world.liars
        if not liars:
            if self._right.get(stage) is not content:  # most replicas share it
                self._check(content, f"{peer.name} at stage {stage} in step {record.step}")
                self._right[stage] = content
            return
        wanted = set(range(self.world.settings.microbatches))
        for entry in record.tallies:
            if entry.peer in liars and self._stage_of(entry.peer, record) == stage:
                wanted -= set(ids_of(unpack_ids(entry.counted)))
        honest = content - self.world.false_parts.get((record.index, stage), Counter[int]())
        self._check(honest, f"{peer.name} at stage {stage} in step {record.step}", wanted)

    def _stage_of(self, peer: PeerID, record: Record) -> int:
        """Return what a peer hosted when the step was counted."""
        before = self.world.records[record.index - 1]
        return next(member.stage for member in before.members if member.peer == peer)

    def _check(self, counted: Counter[int], who: str, ids: set[int] | None = None) -> None:
        wanted = Counter(range(self.world.settings.microbatches) if ids is None else ids)
        if not dict.__eq__(counted, wanted) and counted != wanted:  # a Counter compares slowly
            repeated, missing = sorted(counted - wanted), sorted(wanted - counted)
            raise self.broken(f"{who} counts {repeated} too often and misses {missing}")
