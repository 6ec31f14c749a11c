"""An aborted reduction changes nothing: a gradient always holds what the tally says, a state only committed steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.trainer import RecordLearned
from protocols.ledger.view import ids_of
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer


class AbortedChangesNothing(Checker):
    """Compares gradient and tally after every record, and the state's step with the record's."""

    promise = "aborted changes nothing"

    @on(RecordLearned)
    def settled(self, peer: PipelinePeer, event: RecordLearned) -> None:
        record = event.record
        ledger, stage = peer.ledger, peer.stage
        if ledger.member is None or ledger.record is not record or peer.peer_id in self.world.liars:
            return
        counted = ids_of(ledger.tally.counted)
        # As dicts: a Counter is compared key by key in Python, and ten thousand peers are looked at after each record.
        if dict.__ne__(stage.gradient, dict.fromkeys(counted, 1)) and not stage.discarding:
            raise self.broken(
                f"{peer.name} says it counted {counted} after record {record.index}, "
                f"but its gradient holds {sorted(stage.gradient.elements())}"
            )
        if ledger.tally.step != record.step + 1:
            raise self.broken(
                f"{peer.name} counts step {ledger.tally.step} after step {record.step}"
            )
        if stage.loaded and ledger.synced and stage.step != record.step:
            raise self.broken(f"{peer.name} holds step {stage.step} after step {record.step}")
