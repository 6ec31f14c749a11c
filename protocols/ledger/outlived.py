"""When the members of a run that cannot go on give up their lives in it, to agree on how it goes on. Pure cores.

To end one's life as a member is always safe: a crash does the same. Who has done so comes back from its disk
(protocols.ledger.restart).

**Too few are left to decide** (`Outlived`, at every member). A member without a majority waits: the others may be cut off from it, and decide. But who comes back from its disk says with
that that its life as a member is over. Once the lives that may go on are no quorum, nobody decides anything in this epoch
any more.

**A stage's state is lost, and others decide** (`LostStages`, at the lead). All holders of a stage were killed, so nobody has its
newest state; they are members again, without it, and have older steps on their disks. When no other holder has come for a
while, the lead tells all members to go back to their disks (`GoBack`), where they find the newest step that is whole.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from protocols.ids import PeerID
from protocols.ledger.view import MEMBERS_MAX, Member, Record


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


LOST_SILENCES: Final = 20.0
"""So long a holder that was only cut off is waited for: what it has is newer than any disk."""


class LostStages:
    """The stages that members have on their disks, and since when the run needs that.

    Args:
      patience_s: how long a peer with the newest state is waited for.
    """

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._on_disk: dict[PeerID, frozenset[int]] = {}
        self._since_s: float | None = None

    def back(self, peer: PeerID, stages: Collection[int]) -> None:
        """A peer is back from its disk, on which it has checkpoints of these stages."""
        self._on_disk.pop(peer, None)
        if len(self._on_disk) >= MEMBERS_MAX:
            del self._on_disk[next(iter(self._on_disk))]
        self._on_disk[peer] = frozenset(stages)

    def are_due(self, now_s: float, record: Record, lost: Collection[int]) -> bool:
        """Tell whether it is time to go back: these stages are lost, and members have all of them on their disks.

        Args:
          lost: as the lead sees it now; none when we do not lead.
        """
        found = {stage for m in record.members for stage in self._on_disk.get(m.peer, ())}
        if not lost or not found.issuperset(lost):
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= self._patience_s
