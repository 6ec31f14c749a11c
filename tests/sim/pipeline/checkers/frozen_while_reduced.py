"""A gradient stands still while it is reduced: what the group sums is what the record will say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from protocols.ledger.trainer import AskStage
    from tests.sim.pipeline.peer import SimPeer


class FrozenWhileReduced(Checker):
    """Looks at each count for a reduction of the same record."""

    promise = "frozen while reduced"

    def counted(self, peer: SimPeer, ask: AskStage) -> None:
        record = peer.ledger.record
        if record is not None and peer.stage.reduces(record.index + 1):
            raise self.broken(
                f"{peer.name} counts microbatch {ask.microbatch} while step {ask.step} is reduced"
            )
