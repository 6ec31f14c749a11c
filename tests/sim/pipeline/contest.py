"""Contested elections: the lead falls silent, several members stand, and what they say to each other is lost one by one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from protocols.ids import PeerID
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Heartbeat,
    Prepare,
    Promise,
    Records,
    Refused,
)
from protocols.ledger.view import Ballot

if TYPE_CHECKING:
    from tests.sim.pipeline.world import PipelineWorld

_ELECTING: Final = (Prepare, Promise, Accept, Accepted, Refused)
_NEWS: Final = (Records, Heartbeat)
_DUELLISTS_MIN: Final = 5
"""Members, the silent lead included, from which on a candidate can be one promise short of a quorum."""


class Contest:
    """While it lasts, half of all that elects and decides is lost. Some members, the old lead among them, may promise and
    accept what others propose, but do not hear what came of it, nor of their lead: so they go on to stand.
    """

    def __init__(self, world: PipelineWorld, lead: PeerID, rng: random.Random) -> None:
        assert world.newest_record is not None
        self.lead = lead
        self.rng = rng
        self.others = [m.peer for m in world.newest_record.members if m.peer != lead]
        few = min(len(self.others), 1 + len(self.others) // 2)
        self._unaware = {lead, *rng.sample(self.others, few)}
        self._world = world
        silence_s = world.settings.silence_s
        self._until_s = world.clock.now_s + silence_s * rng.uniform(4, 12)
        links = [(lead, peer) for peer in world.peers if peer != lead]
        self.silence(links, silence_s * rng.uniform(1, 4))

    def silence(self, links: list[tuple[PeerID, PeerID]], seconds: float) -> None:
        """Let nobody hear the lead for a while."""
        self._world.network.cut(links)
        self._world.clock.after(seconds, self._world.network.join, links)

    def loses(self, source: PeerID, target: PeerID, message: Any) -> bool:
        """Tell whether a message does not arrive."""
        if source == target or self._world.clock.now_s >= self._until_s:
            return False
        return self.is_lost(source, target, message)

    def is_lost(self, source: PeerID, target: PeerID, message: Any) -> bool:
        if isinstance(message, _ELECTING):
            return self.rng.random() < 0.5
        return (
            isinstance(message, _NEWS) and target in self._unaware and source not in self._unaware
        )


class Duel(Contest):
    """Two candidates, of whom one decides and nobody hears of it, and the other is always one promise short.

    The first to stand is promised its first ballot by some, its later ones by the old lead alone. The second is promised and
    accepted by all but those two. Were a promise to an earlier ballot to count for a later one, both would decide.
    """

    def __init__(self, world: PipelineWorld, lead: PeerID, rng: random.Random) -> None:
        super().__init__(world, lead, rng)
        self._first, self._second, *rest = sorted(self.others)
        self._promising = rest[: (len(self.others) + 1) // 2 - 1]
        self._ballot: Ballot | None = None
        """The first one's first."""

    def silence(self, links: list[tuple[PeerID, PeerID]], seconds: float) -> None:
        """It can be heard all the time: by the first candidate, in its answers."""

    def is_lost(self, source: PeerID, target: PeerID, message: Any) -> bool:
        if source == self.lead:
            return not (target == self._first and isinstance(message, Promise | Accepted))
        if isinstance(message, Records):
            return True
        if source == self._first and isinstance(message, Prepare):
            self._ballot = self._ballot or message.ballot
            asked = self._promising if message.ballot == self._ballot else [self.lead]
            return target not in asked
        if source == self._second:
            return target in (self._first, self.lead)
        return False


def begin(world: PipelineWorld, lead: PeerID, rng: random.Random) -> Contest:
    """Begin one of either kind."""
    assert world.newest_record is not None
    may_duel = len(world.newest_record.members) >= _DUELLISTS_MIN and rng.random() < 0.5
    return Duel(world, lead, rng) if may_duel else Contest(world, lead, rng)
