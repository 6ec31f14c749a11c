"""A contested election: the lead falls silent, several members stand, and what they say to each other is lost one by one."""

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

if TYPE_CHECKING:
    from tests.sim.pipeline.world import PipelineWorld

_ELECTING: Final = (Prepare, Promise, Accept, Accepted, Refused)
_NEWS: Final = (Records, Heartbeat)


class Contest:
    """While it lasts, half of all that elects and decides is lost. Some members, the old lead among them, may promise and
    accept what others propose, but do not hear what came of it, nor of their lead: so they go on to stand.
    """

    def __init__(self, world: PipelineWorld, lead: PeerID, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        assert world.newest_record is not None
        others = [m.peer for m in world.newest_record.members if m.peer != lead]
        self._unaware = {lead, *rng.sample(others, min(len(others), 1 + len(others) // 2))}
        silence_s = world.settings.silence_s
        self._until_s = world.clock.now_s + silence_s * rng.uniform(4, 12)
        links = [(lead, peer) for peer in world.peers if peer != lead]
        world.network.cut(links)
        world.clock.after(silence_s * rng.uniform(1, 4), world.network.join, links)

    def loses(self, source: PeerID, target: PeerID, message: Any) -> bool:
        """Tell whether a message does not arrive."""
        if source == target or self._world.clock.now_s >= self._until_s:
            return False
        if isinstance(message, _ELECTING):
            return self._rng.random() < 0.5
        news = isinstance(message, _NEWS)
        return news and target in self._unaware and source not in self._unaware
