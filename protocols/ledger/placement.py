"""Which stage a newcomer hosts, who moves to a stage in need, and who may leave.

Rules of this file:
  - The state of a stage lives only in its synced members, so the last of them stays until another one has it.
  - A member is moved only from a stage that keeps a synced member without it, and only to one where it can get the state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocols.ids import PeerID
from protocols.ledger.messages import JoinWanted
from protocols.ledger.view import Member


@dataclass(frozen=True, slots=True)
class Standing:
    """What the lead knows of one member."""

    member: Member
    synced: bool
    leaving: bool
    counted: int
    """Microbatches in its gradient: what moving it would throw away."""


def unknown(member: Member) -> Standing:
    """What is known of a member that has not reported yet: it is taken to have what it was admitted with."""
    return Standing(member, synced=False, leaving=False, counted=0)


class Staffing:
    """The members by stage. Kept up to date member by member: a lead asks it at every report.

    Args:
      epoch, step: of the last record.
      first_step: at this step every node can build the state of every stage by itself.
    """

    __slots__ = ("_first_step", "_leaving", "_staying", "epoch", "stages", "step")

    def __init__(
        self,
        standings: Iterable[Standing],
        *,
        stages: int,
        step: int,
        epoch: int = 0,
        first_step: int = 0,
    ) -> None:
        self.stages = stages
        self.step = step
        self._first_step = first_step
        self.epoch = epoch
        self._staying: list[dict[PeerID, Standing]] = [{} for _ in range(stages)]
        self._leaving: list[dict[PeerID, Standing]] = [{} for _ in range(stages)]
        for standing in standings:
            self.put(standing)

    def put(self, standing: Standing) -> None:
        """Take a further member into account, or what is known of one by now. It has not changed its stage."""
        stage, peer = standing.member.stage, standing.member.peer
        group, other = self._staying, self._leaving
        if standing.leaving:
            group, other = other, group
        other[stage].pop(peer, None)
        group[stage][peer] = standing

    def of(self, members: Iterable[Member], *, step: int) -> Staffing:
        """Return the staffing by these members; one that has been marked anew since has counted nothing, and holds nothing."""
        standings = (self._find(member) or unknown(member) for member in members)
        return Staffing(
            standings,
            stages=self.stages,
            step=step,
            epoch=self.epoch,
            first_step=self._first_step,
        )

    @property
    def _is_initial(self) -> bool:
        return self.step == self._first_step

    def _find(self, member: Member) -> Standing | None:
        found = self._staying[member.stage].get(member.peer)
        found = found or self._leaving[member.stage].get(member.peer)
        return found if found is not None and found.member == member else None

    def stage_for(self, join: JoinWanted) -> int:
        """Return the stage whose present state the newcomer holds, its own wish, or the one with the fewest members."""
        if (
            join.holds is not None
            and (join.holds.epoch, join.holds.step) == (self.epoch, self.step)
            and join.holds.stage < self.stages
        ):
            return join.holds.stage
        if join.stage is not None and join.stage < self.stages:
            return join.stage
        return min(range(self.stages), key=lambda stage: (len(self._staying[stage]), stage))

    def may_leave(self, leaver: Standing) -> bool:
        """Tell whether nothing is lost with a leaving member: its stage's state is held by one that stays."""
        if not leaver.synced or self._is_initial or not any(self._staying):
            return True
        return any(standing.synced for standing in self._staying[leaver.member.stage].values())

    def stateless(self) -> list[int]:
        """List the stages whose state no member has: the run waits for a peer that still holds it."""
        return [
            stage
            for stage in range(self.stages)
            if not any(s.synced for s in self._staying[stage].values())
            and not any(s.synced for s in self._leaving[stage].values())
        ]

    def rescue(self, *, replicas: int = 1) -> tuple[PeerID, int] | None:
        """Name a member to move at once, to a stage that nobody else will serve.

        Args:
          replicas: how many each stage must have; more than one only before the run has begun.
        """
        for stage in range(self.stages):
            has_donor = self._is_initial or any(s.synced for s in self._leaving[stage].values())
            if has_donor and len(self._staying[stage]) < replicas:
                peer = self._spare(keep=replicas)
                return (peer, stage) if peer is not None else None
        return None

    def reinforce(self) -> tuple[PeerID, int] | None:
        """Name a member to move at a step's end, to a stage that one more loss would end. One fetch at a time."""
        if any(self._leaving) or any(not s.synced for g in self._staying for s in g.values()):
            return None
        for stage in range(self.stages):
            if len(self._staying[stage]) == 1:
                peer = self._spare(keep=2)
                return (peer, stage) if peer is not None else None
        return None

    def _spare(self, *, keep: int) -> PeerID | None:
        """Choose from the stage with the most members one whose leaving costs least, if `keep` synced ones remain."""
        crowd = max(self._staying, key=len).values()
        synced = sum(s.synced for s in crowd)
        able = [s for s in crowd if synced - s.synced >= keep]
        if not able:
            return None
        return min(able, key=lambda s: (s.synced, s.counted, s.member.peer)).member.peer
