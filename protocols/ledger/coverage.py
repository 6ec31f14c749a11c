"""What the stages have counted of the step in progress, as far as their members have reported.

Two replicas that say they counted the same microbatch cannot both go into one sum, and nobody can tell which of them lies,
if either does. What was claimed first stands. The later claim is *disputed*: all that its member counted is left out
until a record has fenced or removed one of the two.

Kept up to date report by report: a lead of thousands takes thousands of reports a second.
"""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.view import Member, MemberTally, pack_ids


class Coverage:
    """The microbatches of one step, per stage.

    Args:
      full: the set of all of them.
    """

    __slots__ = ("_by_stage", "_counted", "_full", "disputed", "done")

    def __init__(self, stages: int, full: int) -> None:
        self._full = full
        self._by_stage: list[int] = [0] * stages
        self._counted: list[dict[PeerID, int]] = [{} for _ in range(stages)]
        self.done = 0
        """Counted at every stage."""
        self.disputed: set[PeerID] = set()
        """Members that contradict another replica of their stage, which had claimed the same before, or themselves."""

    @property
    def begun(self) -> bool:
        """Something has been counted."""
        return any(self._by_stage)

    @property
    def complete(self) -> bool:
        """Everything has been counted, everywhere."""
        return self.done == self._full

    def add(self, member: Member, counted: int) -> None:
        """Take a member's newest count. It only grows: whoever is fenced begins in a new Coverage."""
        counts = self._counted[member.stage]
        new = counted & ~counts.get(member.peer, 0)
        if not new:
            return
        if new & self._by_stage[member.stage]:
            self.dispute(member)
        elif member.peer not in self.disputed:
            counts[member.peer] = counted
            self._by_stage[member.stage] |= new
            self._add_up()

    def holders(self, ids: int) -> tuple[MemberTally, ...]:
        """Name who has counted which of these."""
        return tuple(
            MemberTally(peer, pack_ids(counted & ids))
            for counts in self._counted
            for peer, counted in counts.items()
            if counted & ids
        )

    def dispute(self, member: Member) -> None:
        """Leave out all that a member says it counted."""
        self.disputed.add(member.peer)
        self._counted[member.stage].pop(member.peer, None)
        self._by_stage[member.stage] = 0
        for ids in self._counted[member.stage].values():
            self._by_stage[member.stage] |= ids
        self._add_up()

    def _add_up(self) -> None:
        done = self._full
        for ids in self._by_stage:
            done &= ids
        self.done = done
