"""Whether those members that still run can ever decide again. A pure core.

A member without a majority waits: the others may be cut off from it, and decide. But who comes back from its disk says with
that that its life as a member is over. Once the lives that may go on are no quorum, nobody decides anything in this epoch
any more. Then a member that waits goes back to its own disk, and agrees with the others on how the run goes on
(protocols.ledger.restart). To end one's life is always safe: a crash does the same.
"""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.view import Record


class Outlived:
    """Members that are back from their disks.

    Args:
      fresh_s: who says so again within this time is still waiting there.
    """

    def __init__(self, *, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._back_s: dict[PeerID, float] = {}

    def back(self, now_s: float, record: Record, peer: PeerID, incarnation: int) -> bool:
        """A peer says that it is back in this life; return whether the members of our newest record are no quorum any more."""
        member = record.view.find(peer)
        if member is None or member.incarnation == incarnation:
            return False
        self._back_s[peer] = now_s
        long_ago_s = now_s - self._fresh_s
        self._back_s = {p: at_s for p, at_s in self._back_s.items() if at_s >= long_ago_s}
        living = [m.peer for m in record.members if m.peer not in self._back_s]
        return not record.view.is_quorum(living)
