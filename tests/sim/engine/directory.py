"""The fake directory: who said lately that it is a member of the run. It may be out, or answer with what it knew a while ago."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.engine.world import World

_STALE_S: Final = 30.0
_VALID: Final = 2.5
"""An announcement is believed for so many times the pause between two: one may be lost. The dead are named until then."""
_CONTACTS_MAX: Final = 256


class SimDirectory:
    """Answers from what was announced, or from an old copy of it.

    Args:
      announce_s: members announce themselves so often.
    """

    def __init__(self, world: World[Any], *, announce_s: float, stale: bool) -> None:
        self.available = True
        self.announce_s = announce_s
        self._world = world
        self._stale = stale
        self._announced_s: dict[PeerID, float] = {}
        self._copy: tuple[PeerID, ...] = ()
        self._copied_s = -math.inf

    def announce(self, peer: PeerID) -> None:
        """Note that a peer says it is a member."""
        if self.available:
            self._announced_s[peer] = self._world.clock.now_s

    def members(self) -> tuple[PeerID, ...]:
        """Return peers that said they are members; in a large swarm not all of them."""
        if not self.available:
            return ()
        now_s = self._world.clock.now_s
        age_s = self._world.scaled(_STALE_S) if self._stale else self.announce_s / 8
        if now_s - self._copied_s > age_s:
            self._copied_s = now_s
            since_s = now_s - _VALID * self.announce_s
            fresh = {peer: at_s for peer, at_s in self._announced_s.items() if at_s >= since_s}
            self._announced_s = fresh
            self._copy = tuple(fresh)[-_CONTACTS_MAX:]
        return self._copy

    def heal(self) -> None:
        self.available = True
        self._stale = False
