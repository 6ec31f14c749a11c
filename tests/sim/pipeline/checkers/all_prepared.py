"""No step is committed before every member that stays holds its stage's reduced gradient: each can apply what is decided."""

from __future__ import annotations

from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided


class AllPrepared(Checker):
    """Looks into the shells of all members at the moment of a decision."""

    promise = "all prepared"

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        if not record.commits_step or before is None:
            return
        stays = {member.peer for member in record.members}
        for member in before.members:
            peer = self.world.peers[member.peer]
            alive = peer.up and peer.ledger.incarnation == member.incarnation
            lies = member.peer in self.world.liars
            if lies or not alive or member.peer not in stays or peer.ledger.record is None:
                continue
            behind = peer.ledger.record.index < before.index
            wanted = record.stages[member.stage].gradient_hash
            if not behind and wanted not in peer.stage.finished:
                raise self.broken(
                    f"step {record.step} is committed and {peer.name} has not reduced it"
                )
