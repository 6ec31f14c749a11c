"""Every committed step's gradient counts every microbatch exactly once at every stage."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocols.ledger.view import Record, ids_of, unpack_ids
from tests.sim.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.peer import SimPeer


class ExactlyOnce(Checker):
    """Looks at what the record claims, and at what was really summed."""

    promise = "exactly once"

    def decided(self, record: Record, before: Record | None) -> None:
        if not record.commits_step or before is None:
            return
        stage_of = {member.peer: member.stage for member in before.members}
        claimed = [Counter[int]() for _ in range(self.world.settings.stages)]
        for entry in record.tallies:
            claimed[stage_of[entry.peer]].update(ids_of(unpack_ids(entry.counted)))
        for stage, counted in enumerate(claimed):
            self._check(counted, f"record {record.index} says that stage {stage}")

    def step_applied(
        self, peer: SimPeer, stage: int, record: Record, content: Counter[int]
    ) -> None:
        self._check(content, f"{peer.name} at stage {stage} in step {record.step}")

    def _check(self, counted: Counter[int], who: str) -> None:
        wanted = Counter(range(self.world.settings.microbatches))
        if counted != wanted:
            repeated, missing = sorted(counted - wanted), sorted(wanted - counted)
            raise self.broken(f"{who} counts {repeated} too often and misses {missing}")
