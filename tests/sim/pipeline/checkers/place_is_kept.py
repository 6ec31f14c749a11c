"""A member gives up its place only for records that exist and that it lacks, whatever another one claims to know.

Among three or fewer, and where no other member has been heard for long, one that lies may be the only other one there is
to hear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.events import Expelled
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from protocols.ledger.view import Record
    from tests.sim.pipeline.peer import PipelinePeer


_FEW = 3


class PlaceIsKept(Checker):
    """Compares the newest record that a member knew, as it went, with the newest there is."""

    promise = "place is kept"

    @on(Expelled)
    def expelled(self, peer: PipelinePeer, effect: Expelled) -> None:
        known, newest = peer.ledger.record, self.world.newest_record
        assert known is not None
        assert newest is not None
        gave_up = peer.ledger.member is not None and len(known.members) > _FEW
        if gave_up and known.index >= newest.index and self._hears_an_honest_one(peer, known):
            raise self.broken(
                f"{peer.name} gave up its place after record {known.index}, which is the newest"
            )

    def _hears_an_honest_one(self, peer: PipelinePeer, known: Record) -> bool:
        pulse, now_s = peer.ledger._pulse, peer.now_s
        return any(
            pulse.silence(now_s, member.peer) <= pulse.silence_s
            for member in known.members
            if member.peer != peer.peer_id and member.peer not in self.world.liars
        )
