"""Who may take part, and where the peers that want one round meet.

A round has a meeting place: a peer that keeps the list of who has come, and makes the groups. It is the first of all live
peers in an order that is hashed anew for each round, so no peer has that work for long and none can choose to have it. It
need not want the round itself: a place that first had to be ready would hold up everybody else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Final

from protocols.ids import PeerID

PEERS_PER_PLACE: Final = 64
"""Peers that meet at one place: each costs it a stream. More of them meet at several places."""
_DOWN_S: Final = 30.0
"""How long a peer that could not be reached is left out, unless it is heard."""
_HEARD_MAX: Final = 256
"""Peers that wrote to us before the directory named them."""


class Contacts:
    """The other peers, as far as this one knows."""

    def __init__(self, own: PeerID) -> None:
        self._own = own
        self._named: frozenset[PeerID] = frozenset()
        self._heard: dict[PeerID, None] = {}
        self._down_until_s: dict[PeerID, float] = {}
        self.changes = 0
        """Rises whenever `live` may give something new."""

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._named or peer in self._heard

    def __len__(self) -> int:
        return len(self._named) + len(self._heard)

    def named(self, peer: PeerID) -> bool:
        """Tell whether the directory names this other peer."""
        return peer in self._named

    def found(self, peers: Sequence[PeerID]) -> None:
        """Take what the directory says."""
        self._named = frozenset(peer for peer in peers if peer != self._own)
        self._heard = {peer: None for peer in self._heard if peer not in self._named}
        self.changes += 1

    def heard(self, peer: PeerID) -> None:
        """A peer wrote to us: it lives."""
        known = peer in self
        if known and peer not in self._down_until_s:
            return
        self._down_until_s.pop(peer, None)
        if not known and peer != self._own:
            if len(self._heard) >= _HEARD_MAX:
                del self._heard[next(iter(self._heard))]
            self._heard[peer] = None
        self.changes += 1

    def down(self, now_s: float, peer: PeerID) -> None:
        """A peer could not be reached."""
        if peer in self:
            self._down_until_s[peer] = now_s + _DOWN_S
            self.changes += 1

    def live(self, now_s: float) -> list[PeerID]:
        """Return the others that may answer, in PeerID order."""
        over = [peer for peer, until_s in self._down_until_s.items() if until_s <= now_s]
        for peer in over:
            del self._down_until_s[peer]
            self.changes += 1
        return sorted(
            peer for peer in {*self._named, *self._heard} if peer not in self._down_until_s
        )

    def place(
        self, now_s: float, key: str, version: int, *, excluded: Collection[PeerID] = ()
    ) -> PeerID:
        """Return where we meet the others for this round.

        Args:
          excluded: peers that did not answer for this round.
        """
        others = [peer for peer in self.live(now_s) if peer not in excluded]
        places = first_places([self._own, *others], key, version)
        return place_of(self._own, places, key, version)

    def expected(self, now_s: float, key: str, version: int) -> frozenset[PeerID]:
        """Return who should come to us, if everybody knows the same peers; anybody may, when we are no place in our own view."""
        everybody = [self._own, *self.live(now_s)]
        places = first_places(everybody, key, version)
        if self._own not in places or len(places) == 1:
            return frozenset(everybody)
        return frozenset(
            peer for peer in everybody if place_of(peer, places, key, version) == self._own
        )


def first_places(peers: Collection[PeerID], key: str, version: int) -> list[PeerID]:
    """Return the places of a round, as many as its peers need."""
    count = math.ceil(len(peers) / PEERS_PER_PLACE)
    return sorted(peers, key=lambda peer: rank(peer, key, version))[:count]


def place_of(peer: PeerID, places: Sequence[PeerID], key: str, version: int) -> PeerID:
    """Return the place of one peer: when a place is added or missing, only few peers change theirs."""
    return min(places, key=lambda place: _hash(b"place", key, version, peer + place))


def rank(peer: PeerID, key: str, version: int) -> bytes:
    """Return where a peer stands in the order of this round; smaller is earlier."""
    return _hash(b"rank", key, version, peer)


def draw_groups(
    peers: Collection[PeerID], key: str, version: int, group_max: int
) -> list[list[PeerID]]:
    """Deal peers into groups of even sizes, each in PeerID order. Drawn anew for each round, so that all mix.

    No group has more than `group_max` members, but for one that takes in a peer which would be alone.
    """
    order = sorted(peers, key=lambda peer: _hash(b"draw", key, version, peer))
    count = max(1, math.ceil(len(order) / group_max))
    groups = [sorted(order[index::count]) for index in range(count)]
    if count > 1 and len(groups[-1]) == 1:
        groups[0] = sorted([*groups[0], *groups.pop()])
    return groups


def _hash(purpose: bytes, key: str, version: int, what: bytes) -> bytes:
    text = b"murmura averaging %s:%d:%s:%s" % (purpose, version, key.encode(), what)
    return hashlib.blake2b(text, digest_size=16).digest()
