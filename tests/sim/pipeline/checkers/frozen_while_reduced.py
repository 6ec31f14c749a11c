"""A gradient stands still while it is reduced: what the group sums is what the record will say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Counted

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer


class FrozenWhileReduced(Checker):
    """Looks at each count for a reduction of the same record."""

    promise = "frozen while reduced"

    @on(Counted)
    def counted(self, peer: PipelinePeer, what: Counted) -> None:
        ask = what.ask
        record = peer.ledger.record
        if record is not None and peer.stage.reduces(record.index + 1):
            raise self.broken(
                f"{peer.name} counts microbatch {ask.microbatch} while step {ask.step} is reduced"
            )
