"""Who takes part, as far as one node knows, and whom it can count on: not who is down, nor who leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from protocols.ids import PeerID

PROBE_AGAIN_S: Final = 1.0
"""A peer is not probed again sooner, however many calls to it fail."""
PROBE_DOWN_S: Final = 5.0
"""One that did not answer is asked so often whether it is back."""
HAND_OVER_AGAIN_S: Final = 2.0
"""A node that has refused an expert is not offered one again sooner."""
LEAVING_S: Final = 10.0
"""A node that said that it leaves counts for nothing so long; it may have come back since."""


@dataclass(slots=True)
class Roster:
    """The others of the run."""

    rooms: dict[PeerID, int] = field(default_factory=dict)
    """Experts that each has room for in all."""
    down: dict[PeerID, float] = field(default_factory=dict)
    """Who does not answer, with since when."""
    probed_s: dict[PeerID, float] = field(default_factory=dict)
    refused_s: dict[PeerID, float] = field(default_factory=dict)
    """When a node last did not take an expert from us."""
    leaving_s: dict[PeerID, float] = field(default_factory=dict)
    """When a node last said that it leaves."""

    def seen(self, rooms: Mapping[PeerID, int]) -> None:
        """These take part now, by the directory. Who is new, or back, is not down."""
        for peer in rooms.keys() - self.rooms.keys():
            self.down.pop(peer, None)
        self.rooms = dict(rooms)
        for times_s in (self.probed_s, self.refused_s, self.leaving_s):
            for peer in times_s.keys() - rooms.keys() - self.down.keys():
                del times_s[peer]

    @property
    def up(self) -> Set[PeerID]:
        """Who can be asked."""
        return self.rooms.keys() - self.down.keys()

    @property
    def staying(self) -> Set[PeerID]:
        """Who can be counted on."""
        return self.up - self.leaving_s.keys()

    def has_just_refused(self, peer: PeerID, now_s: float) -> bool:
        """Tell whether it did not take an expert from us a moment ago."""
        return now_s - self.refused_s.get(peer, -math.inf) < HAND_OVER_AGAIN_S

    def leave(self, peers: Iterable[PeerID], now_s: float) -> None:
        """They said that they leave."""
        self.leaving_s |= dict.fromkeys(peers, now_s)

    def tick(self, now_s: float) -> None:
        """Time passes: who said long ago that it leaves may be back."""
        for peer in [p for p, at_s in self.leaving_s.items() if now_s - at_s >= LEAVING_S]:
            del self.leaving_s[peer]

    def due(self, now_s: float) -> Sequence[PeerID]:
        """Return who was down and is to be probed again."""
        due = [
            peer
            for peer in sorted(self.down.keys() & self.rooms.keys())
            if now_s - self.probed_s.get(peer, -math.inf) >= PROBE_DOWN_S
        ]
        self.probed_s |= dict.fromkeys(due, now_s)
        return due

    def suspect(self, peer: PeerID, now_s: float) -> bool:
        """A call to this one failed. Returns whether it is to be probed."""
        if peer in self.down or now_s - self.probed_s.get(peer, -math.inf) < PROBE_AGAIN_S:
            return False
        self.probed_s[peer] = now_s
        return True
