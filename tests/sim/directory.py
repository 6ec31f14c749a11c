"""The fake directory: who says it is a member of the run. It may be out, or answer with what was true a while ago."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.world import World

_STALE_S = 30.0


class SimDirectory:
    """Answers from the truth, or from an old copy of it."""

    def __init__(self, world: World, rng: random.Random, *, stale: bool) -> None:
        self.available = True
        self._world = world
        self._rng = rng
        self._stale = stale
        self._copy: tuple[PeerID, ...] = ()
        self._copied_s = float("-inf")

    def members(self, asker: PeerID) -> tuple[PeerID, ...]:
        """Return the peers that say they are members, the asker left out; in an order of their own for each asker."""
        if not self.available:
            return ()
        now_s = self._world.clock.now_s
        if not self._stale or now_s - self._copied_s > self._world.scaled(_STALE_S):
            self._copied_s = now_s
            self._copy = tuple(
                peer_id
                for peer_id, peer in self._world.peers.items()
                if peer.up and peer.ledger.member is not None
            )
        return tuple(peer_id for peer_id in self._copy if peer_id != asker)

    def heal(self) -> None:
        self.available = True
        self._stale = False
