"""Replicas that committed the same step hold the same state, and it is the one the members committed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided, StateReached
from tests.sim.pipeline.stage import state_root

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


class SameState(Checker):
    """Remembers the first state seen of each stage and step."""

    promise = "same state"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._states: dict[tuple[int, int], bytes] = {}

    @on(StateReached)
    def state_reached(self, peer: PipelinePeer, what: StateReached) -> None:
        stage, step, state = what.stage, what.step, what.state
        if self._states.setdefault((stage, step), state) != state:
            raise self.broken(f"{peer.name} differs at stage {stage} after step {step}")

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record = what.record
        for stage, commit in enumerate(record.stages):
            state = self._states.get((stage, record.step - 1))
            if commit.state_hash and state is not None and commit.state_hash != state_root(state):
                raise self.broken(
                    f"record {record.index} commits to another state of stage {stage}"
                )
