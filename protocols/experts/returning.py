"""What an earlier life of this node has left on its disk, and what becomes of it.

- What it had last, as far as it saw, it takes back at once: from the newest copy of its own state that anybody keeps, unless
  somebody has gone on with it. Who has begun it anew has not.
- Whatever else it has not seen alive it leaves to its host for a minute: all may have been away, and come back in any order.
- The directory may still name hosts that died with it: a record of an epoch that it knew before shows nobody alive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.experts.epoch import changes
from protocols.experts.events import OffersFound
from protocols.experts.evidence import Memory
from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

RETURN_S: Final = 60.0
"""So long a node that comes back leaves to their hosts the experts that nobody has: they may come back as well."""


@dataclass(slots=True)
class Returning:
    """Of one node; empty where there was no earlier life."""

    me: PeerID
    ours: dict[ExpertUID, int] = field(default_factory=dict)
    """What is to be taken back, with the epochs that we had."""
    until_s: float = -math.inf
    """So long is the rest left to its hosts."""

    def restore(
        self,
        now_s: float,
        memories: Mapping[ExpertUID, Memory],
        seen: Mapping[ExpertUID, Sequence[Seen]],
        offers: Mapping[ExpertUID, SnapshotOffer],
    ) -> None:
        """Remember whom we saw as hosts, and what we had; see `Placement.restore`."""
        for uid, memory in memories.items():
            offer = offers.get(uid)
            if offer is not None:  # it counted when it was taken, also if what was seen is lost
                memory.seen(offer.epoch, offer.host)
            for host in seen.get(uid, ()):
                memory.seen(host.epoch, host.host)
            memory.before = frozenset(memory.hosts)
            memory.epoch = max(memory.hosts, default=0)
            if offer is not None and offer.host == self.me and memory.is_newest(offer):
                self.ours[uid] = offer.epoch
        if seen or offers:
            self.until_s = now_s + RETURN_S

    def leaves_alone(self, memory: Memory, now_s: float) -> bool:
        """Tell whether an expert that nobody has is its host's to take back."""
        return now_s < self.until_s and not memory.alive

    def is_ours_still(self, uid: ExpertUID, live: Sequence[Claim]) -> bool:
        """Tell whether nobody has gone on with what we had, from that or from something later."""
        return not live or live[0].epoch < self.ours[uid] or changes(live[0].epoch) == 1

    def newest_of_ours(
        self, event: OffersFound, memory: Memory
    ) -> tuple[SnapshotOffer, tuple[PeerID, ...]] | None:
        """Return the newest copy of what we had that has not failed, with who keeps it."""
        ours = [
            offer
            for _, offer in event.offers
            if (offer.host, offer.epoch) == (self.me, self.ours[event.uid])
            and offer.root not in memory.failures
        ]
        if not ours:
            return None
        newest = max(ours, key=lambda offer: offer.age)
        return newest, tuple(keeper for keeper, o in event.offers if o.root == newest.root)
