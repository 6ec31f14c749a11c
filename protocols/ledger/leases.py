"""Which trainer works on which microbatch: the lead's book. A lease saves work; correctness never rests on it.

Rules of this file:
  - A trainer holds a microbatch until the step commits, since a fence may make it necessary again. Only when nothing
    else is left does an idle trainer get one that another has held for too long.
  - What was dealt once is never *fresh* again: its next holder asks the members first what they counted.
  - Generations only grow, across leads too: their high bits are the index and the ballot round of the lead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from protocols.ids import PeerID
from protocols.ledger.view import ids_of

TRAINERS_MAX: Final = 16384
"""As many as a run may have members; more are told nothing until others fall silent."""
_COUNTER_BITS: Final = 20
_ROUND_BITS: Final = 12
_DOUBLINGS_MAX: Final = 6


def first_generation(index: int, ballot_round: int) -> int:
    """Return a number above every generation dealt under an older index, or under this one in an earlier round."""
    return ((index << _ROUND_BITS) + min(ballot_round, (1 << _ROUND_BITS) - 1)) << _COUNTER_BITS


@dataclass(slots=True)
class _Dealt:
    """The last time a microbatch was dealt or adopted."""

    since_s: float
    times: int = 1


class Leases:
    """The leases of one step under one lead.

    Args:
      step: the step whose microbatches are dealt.
      known: whether this lead has dealt the step from its beginning; if not, nothing is fresh.
      grace_s: how long a lease may be on its way before its trainer must have confirmed it.
      lease_s: how long a trainer may hold a microbatch while another is idle.
    """

    __slots__ = (
        "_dealt",
        "_generation",
        "_grace_s",
        "_held",
        "_held_by_any",
        "_lease_s",
        "_none_overdue_until_s",
        "_unseen",
        "step",
        "touched",
    )

    def __init__(
        self,
        step: int,
        *,
        generation: int,
        known: bool,
        all_ids: int,
        grace_s: float,
        lease_s: float = 60.0,
    ) -> None:
        self.step = step
        self.touched = 0 if known else all_ids
        self._generation = generation
        self._grace_s = grace_s
        self._lease_s = lease_s
        self._held: dict[PeerID, int] = {}
        self._held_by_any = 0
        self._none_overdue_until_s = -math.inf
        self._unseen: dict[PeerID, dict[int, tuple[int, float]]] = {}
        self._dealt: dict[int, _Dealt] = {}

    def raise_generation(self, generation: int) -> None:
        """Follow a new index: later leases must outrank any that a rival lead dealt under an older one."""
        self._generation = max(self._generation, generation)
        self._none_overdue_until_s = -math.inf  # what is needed may have changed

    def held(self) -> int:
        """The microbatches somebody holds."""
        return self._held_by_any

    def held_by(self, trainer: PeerID) -> int:
        return self._held.get(trainer, 0)

    def renew(self, now_s: float, trainer: PeerID, holding: int, seen: int) -> int:
        """Take a trainer's word for what it holds, and adopt what nobody else holds; return what somebody else does.

        What was dealt in a generation it has not seen is on its way, or was lost: it stays reserved for `grace_s`.
        """
        if trainer not in self._held and len(self._held) >= TRAINERS_MAX:
            return 0
        on_its_way = 0
        unseen = self._unseen.get(trainer)
        if unseen:
            for microbatch, (generation, dealt_s) in list(unseen.items()):
                if generation > seen and now_s - dealt_s <= self._grace_s:
                    on_its_way |= 1 << microbatch
                else:
                    del unseen[microbatch]
        before = self._held.get(trainer, 0)
        lost = 0
        if holding & ~before:
            lost = holding & ~before & self._held_by_any
            holding &= ~lost
            for microbatch in ids_of(holding & ~before):
                self._dealt.setdefault(microbatch, self._dealt_now(now_s))
            self.touched |= holding
        self._hold(trainer, holding | on_its_way & before)
        return lost

    def _hold(self, trainer: PeerID, ids: int) -> None:
        """Note what a trainer holds; nobody else holds any of it."""
        self._held_by_any = self._held_by_any & ~self._held.get(trainer, 0) | ids
        self._held[trainer] = ids

    def expire(self, trainer: PeerID) -> None:
        """Take back what a silent trainer holds."""
        self._held_by_any &= ~self._held.pop(trainer, 0)
        self._unseen.pop(trainer, None)

    def trainers(self) -> list[PeerID]:
        return list(self._held)

    def deal(self, now_s: float, trainer: PeerID, slots: int, needed: int) -> tuple[int, int, bool]:
        """Lease up to `slots` of the `needed` microbatches that nobody holds; fresh ones first, never mixed.

        When all are held, those held for too long are taken over, the trainer's own included: asking the members again
        finds out what it has lost sight of.

        Returns:
          (ids, generation, fresh); ids is 0 when there is nothing to deal.
        """
        if slots <= 0 or trainer not in self._held:
            return 0, self._generation, True
        free = needed & ~self._held_by_any
        fresh = free & ~self.touched
        wanted = fresh or free or self._overdue(now_s, needed)
        chosen = _lowest(wanted, slots)
        if not chosen:
            return 0, self._generation, True
        self._generation += 1
        self._give(now_s, trainer, chosen)
        return chosen, self._generation, bool(fresh)

    def _give(self, now_s: float, trainer: PeerID, chosen: int) -> None:
        if chosen & self._held_by_any:
            for other, ids in self._held.items():
                self._held[other] = ids & ~chosen
        self._hold(trainer, self._held[trainer] | chosen)
        self.touched |= chosen
        unseen = self._unseen.setdefault(trainer, {})
        for microbatch in ids_of(chosen):
            unseen[microbatch] = (self._generation, now_s)
            dealt = self._dealt.get(microbatch)
            times = dealt.times + 1 if dealt is not None else 1
            self._dealt[microbatch] = self._dealt_now(now_s, times)

    def _dealt_now(self, now_s: float, times: int = 1) -> _Dealt:
        due_s = now_s + self._lease_s
        self._none_overdue_until_s = min(self._none_overdue_until_s, due_s)
        return _Dealt(now_s, times)

    def _overdue(self, now_s: float, needed: int) -> int:
        """Return what has been held for too long; each time it is dealt again it may take twice as long.

        Every trainer that asks in vain leads here, so what was found in vain is not looked for again.
        """
        if now_s < self._none_overdue_until_s:
            return 0
        overdue, next_s = 0, math.inf
        for microbatch in ids_of(needed):
            dealt = self._dealt[microbatch]
            due_s = dealt.since_s + self._lease_s * 2 ** min(dealt.times - 1, _DOUBLINGS_MAX)
            if now_s > due_s:
                overdue |= 1 << microbatch
            else:
                next_s = min(next_s, due_s)
        if not overdue:
            self._none_overdue_until_s = next_s
        return overdue


def _lowest(ids: int, count: int) -> int:
    """Choose the `count` lowest microbatches of a set."""
    chosen = 0
    while ids and count > 0:
        low = ids & -ids
        chosen |= low
        ids ^= low
        count -= 1
    return chosen
