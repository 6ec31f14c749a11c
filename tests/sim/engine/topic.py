"""The fake topic: what one peer publishes reaches the others late, twice, long after, or never."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.engine.peer import SimPeer
    from tests.sim.engine.world import World

_HOPS_MAX: Final = 4
_LISTENERS_MAX: Final = 256
"""Of a large swarm not all hear what is published."""
_OLD_S: Final = 60.0
"""A repeated notice comes up to so much later."""


class SimTopic:
    """Everybody who is up listens; nobody hears itself, nor across a cut.

    Args:
      loss, repeats: shares of what each listener should hear.
    """

    def __init__(
        self, world: World[Any], rng: random.Random, *, loss: float, repeats: float
    ) -> None:
        self._world = world
        self._rng = rng
        self._loss = loss
        self._repeats = repeats
        self.published: Counter[PeerID] = Counter()

    def publish(self, author: PeerID, hint: Any) -> None:
        """Let the others hear it, as far as the weather allows."""
        self.published[author] += 1
        listeners = [peer for peer in self._world.peers.values() if peer.peer_id != author]
        if len(listeners) > _LISTENERS_MAX:
            listeners = self._rng.sample(listeners, _LISTENERS_MAX)
        for listener in listeners:
            self._pass_on(author, listener, hint)

    def _pass_on(self, author: PeerID, listener: SimPeer, hint: Any) -> None:
        rng, clock, weather = self._rng, self._world.clock, self._world.network.weather
        if rng.random() >= self._loss:
            delay_s = weather.delay_s * rng.uniform(0.5, _HOPS_MAX)
            clock.after(delay_s, self._arrive, author, listener, hint)
        if rng.random() < self._repeats:
            delay_s = self._world.scaled(_OLD_S * rng.random())
            clock.after(delay_s, self._arrive, author, listener, hint)

    def _arrive(self, author: PeerID, listener: SimPeer, hint: Any) -> None:
        if (author, listener.peer_id) not in self._world.network.cuts:
            listener.hear(author, hint)

    def heal(self) -> None:
        self._loss = self._repeats = 0.0
