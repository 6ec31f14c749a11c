"""Whether those members that still run can ever decide again. A pure core.

A member without a majority waits: the others may be cut off from it, and decide. But who comes back from its disk says with
that that its life as a member is over. Once the lives that may go on are no quorum, nobody decides anything in this epoch
any more. Then a member that waits goes back to its own disk, and agrees with the others on how the run goes on
(protocols.ledger.restart). To end one's life is always safe: a crash does the same.
"""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.view import Member, Record


class Outlived:
    """The lives of members that are over, as those say themselves that are back."""

    def __init__(self) -> None:
        self._over: set[Member] = set()

    def back(self, record: Record, peer: PeerID, incarnation: int) -> bool:
        """A peer is back in this life; return whether the others that our newest record names are no quorum any more."""
        member = record.view.find(peer)
        if member is None or member.incarnation == incarnation:
            return False
        self._over = {m for m in record.members if m in self._over} | {member}
        living = [m.peer for m in record.members if m not in self._over]
        return not record.view.is_quorum(living)
