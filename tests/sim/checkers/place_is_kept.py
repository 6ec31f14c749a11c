"""A member gives up its place only for records that exist and that it lacks, whatever another one claims to know.

Among three or fewer, one that lies may be the only other one there is to hear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.peer import SimPeer


_FEW = 3


class PlaceIsKept(Checker):
    """Compares the newest record that a member knew, as it went, with the newest there is."""

    promise = "place is kept"

    def expelled(self, peer: SimPeer) -> None:
        known, newest = peer.ledger.record, self.world.newest_record
        assert known is not None
        assert newest is not None
        gave_up = peer.ledger.member is not None and len(known.members) > _FEW
        if gave_up and known.index >= newest.index:
            raise self.broken(
                f"{peer.name} gave up its place after record {known.index}, which is the newest"
            )
