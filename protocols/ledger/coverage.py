"""What the stages have counted of the step in progress, as far as their members have reported.

Kept up to date report by report: a lead of thousands takes thousands of reports a second.
"""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.view import Member


class Coverage:
    """The microbatches of one step, per stage.

    Args:
      full: the set of all of them.
    """

    __slots__ = ("_by_stage", "_counted", "_full", "done", "overlapping")

    def __init__(self, stages: int, full: int) -> None:
        self._full = full
        self._by_stage = [0] * stages
        self._counted: dict[PeerID, int] = {}
        self.done = 0
        """Counted at every stage."""
        self.overlapping: PeerID | None = None
        """A member that counted what another replica of its stage has as well."""

    @property
    def begun(self) -> bool:
        """Something has been counted."""
        return any(self._by_stage)

    def add(self, member: Member, counted: int) -> None:
        """Take a member's newest count. It only grows: whoever is fenced begins in a new Coverage."""
        new = counted & ~self._counted.get(member.peer, 0)
        if not new:
            return
        self._counted[member.peer] = counted
        if new & self._by_stage[member.stage]:
            self.overlapping = member.peer
        self._by_stage[member.stage] |= new
        done = self._full
        for ids in self._by_stage:
            done &= ids
        self.done = done
