"""Rumours of records: what a lead tells the run's topic, and whom a rumour makes us ask.

A rumour is a claim that is checked by asking, never believed: whoever spreads one is asked as one that the directory
names. So it helps those whom the lead cannot reach by itself, outsiders and members that were left behind, also while the
directory is stale or out. The topic may lose, delay and repeat; it is silent while the members stay as they are.
"""

from __future__ import annotations

import math
from typing import Final

from protocols.ids import PeerID
from protocols.ledger.messages import Rumour

SPREADERS_MAX: Final = 16
"""Remembered, the newest first. Strangers spread rumours, too, so the directory's contacts are asked as well."""


class Gossip:
    """One peer's part in it.

    Args:
      pause_s: between two rumours of ours, however often the members change.
    """

    __slots__ = ("_pause_s", "_spread_s", "_untold", "spreaders")

    def __init__(self, pause_s: float) -> None:
        self.spreaders: tuple[PeerID, ...] = ()
        """Who claims to know records that we lack."""
        self._pause_s = pause_s
        self._spread_s = -math.inf
        self._untold: int | None = None

    def members_changed(self, index: int) -> None:
        """We lead, and this record of ours changed the members."""
        self._untold = index

    def due(self, now_s: float) -> Rumour | None:
        """Return what is to be spread now, once."""
        if self._untold is None or now_s < self._spread_s + self._pause_s:
            return None
        rumour, self._untold, self._spread_s = Rumour(self._untold), None, now_s
        return rumour

    def remember(self, peer: PeerID) -> None:
        """Ask this peer from now on."""
        others = (known for known in self.spreaders if known != peer)
        self.spreaders = (peer, *others)[:SPREADERS_MAX]

    def forget(self) -> None:
        """We are a member, and know whom to ask."""
        self.spreaders = ()
