"""There is one history: all peers learn the same record for one index, whatever side of a partition they were on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.events import Learned
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer


class OneHistory(Checker):
    """Compares what each peer learns with what the first one learned, and its place with what that peer knew before."""

    promise = "one history"

    @on(Learned)
    def learned(self, peer: PipelinePeer, effect: Learned) -> None:
        record = effect.record
        known = self.world.records.get(record.index)
        if known is not None and known is not record and known != record:
            raise self.broken(f"{peer.name} learned another record {record.index}")
        if record.index <= peer.record_index:
            raise self.broken(
                f"{peer.name} went back from record {peer.record_index} to {record.index}"
            )

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        if before is None:
            return
        if record.previous != before.digest():
            raise self.broken(f"record {record.index} does not follow record {before.index}")
        if (
            record.step - before.step not in (0, 1)
            or (record.step > before.step) != record.commits_step
        ):
            raise self.broken(
                f"record {record.index} goes from step {before.step} to {record.step}"
            )
