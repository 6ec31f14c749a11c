"""Two histories of one run, and which of them ends when they meet. A pure core.

An operator's word begins an epoch without a majority, so others may have done the same elsewhere. Who is in such a history
looks for those it has begun without (`Fork.absent`), and tells them the newest record of its run. When they are in another
history, the shorter one is given up: each of its nodes joins the other run as a newcomer.

Rules of this file:
  - A history gives way only if an operator's word has begun it since the two parted. One that members have agreed on never
    does, whatever anybody says; and one that a word has begun always gives way to it.
  - Of two that words have begun the one with the more steps stays; of equal ones the one with the larger epoch, that is nonce.
  - A member whose run has lost its majority, as when the others have given way already, asks those that it was in a run with,
    and follows them.
  - Only those are believed that the word was about: members of the last common record that were not there, and only about a
    run that they are members of themselves. What a stranger says, or a member of our own run, changes nothing.
  - What they say is believed: records are not signed, and nothing here proves a step. See docs/decisions.md.
  - The decision is each node's own, so nodes of one side may differ for a moment, and both sides may give way at once. Nothing
    is lost by that: who is not let in comes back from its disk (protocols.ledger.restart).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from protocols.ids import PeerID
from protocols.ledger.view import Fork, Record, shape_problem

CALL_SILENCES: Final = 2.0
"""How often those that were not there are looked for, in `silence_s`."""
_ANSWER_SILENCES: Final = 0.25


@dataclass(frozen=True, slots=True)
class Call:
    """Tell a peer the newest record of our run."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer whether it is in a run that goes on: ours does not."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Leave this run, and join the one of this record as a newcomer."""

    record: Record


ReunionEffect: TypeAlias = Call | Ask | GiveWay


class Reunion:
    """One member's part in it, for as long as it is one."""

    def __init__(self, me: PeerID, silence_s: float, stages: int, *, now_s: float) -> None:
        self._me = me
        self._silence_s = silence_s
        self._stages = stages
        self._next_call_s = now_s
        self._answered_s: dict[PeerID, float] = {}
        """When those that a word was about were last answered."""

    @property
    def wake_at_s(self) -> float:
        return self._next_call_s

    def tick(self, now_s: float, ours: Record, *, majority: bool) -> list[ReunionEffect]:
        """Look for those that our history has begun without; without a majority for anybody that we were in a run with.

        Args:
          majority: whether our run has one, so that it goes on.
        """
        if now_s < self._next_call_s:
            return []
        self._next_call_s = now_s + CALL_SILENCES * self._silence_s
        absent = _absent(ours.forks)
        if majority:
            return [Call(peer) for peer in sorted(absent) if peer not in ours.view]
        return [Ask(peer) for peer in sorted({*absent, *ours.view} - {self._me})]

    def told(
        self, now_s: float, ours: Record, peer: PeerID, theirs: Record, *, majority: bool
    ) -> list[ReunionEffect]:
        """Somebody says that it is in a run with this newest record.

        Args:
          majority: whether our run has one, so that it goes on.
        """
        if shape_problem(theirs, stages=self._stages) is not None or peer not in theirs.view:
            return []
        if not majority:
            knew = peer in ours.view or peer in _absent(ours.forks)
            return [GiveWay(theirs)] if knew and theirs.epoch != ours.epoch else []
        if gives_way(ours, theirs, speaker=peer):
            return [GiveWay(theirs)]
        if peer not in ours.view and _parted(theirs, ours):
            return self._answer(now_s, peer)
        return []

    def _answer(self, now_s: float, peer: PeerID) -> list[ReunionEffect]:
        """Ours stays: theirs has to know of it. Bounded, since two that are as long would answer each other for ever."""
        self._answered_s = {
            known: at_s
            for known, at_s in self._answered_s.items()
            if now_s < at_s + _ANSWER_SILENCES * self._silence_s
        }
        if peer in self._answered_s:
            return []
        self._answered_s[peer] = now_s
        return [Call(peer)]


def gives_way(ours: Record, theirs: Record, *, speaker: PeerID) -> bool:
    """Tell whether the run of our record ends because that of theirs goes on, of which the speaker is a member."""
    own = _parted(ours, theirs)
    if speaker not in _absent(own) or speaker not in theirs.view:
        return False
    other = _parted(theirs, ours)
    if not other:
        return True  # theirs has had a majority all the time
    return (theirs.step, other[0].epoch) > (ours.step, own[0].epoch)


def _parted(record: Record, other: Record) -> tuple[Fork, ...]:
    """Return the words that have begun the history of `record` since it parted from that of `other`, oldest first."""
    common = {fork.epoch for fork in other.forks}
    return tuple(fork for fork in record.forks if fork.epoch not in common)


def _absent(forks: tuple[Fork, ...]) -> set[PeerID]:
    return {peer for fork in forks for peer in fork.absent}
