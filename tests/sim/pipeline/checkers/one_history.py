"""There is one history: all peers learn the same record for one index, whatever side of a partition they were on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.view import Record
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import SimPeer


class OneHistory(Checker):
    """Compares what each peer learns with what the first one learned, and its place with what that peer knew before."""

    promise = "one history"

    def learned(self, peer: SimPeer, record: Record) -> None:
        known = self.world.records.get(record.index)
        if known is not None and known is not record and known != record:
            raise self.broken(f"{peer.name} learned another record {record.index}")
        if record.index <= peer.record_index:
            raise self.broken(
                f"{peer.name} went back from record {peer.record_index} to {record.index}"
            )

    def decided(self, record: Record, before: Record | None) -> None:
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
