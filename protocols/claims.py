"""Which part of the data a peer trains on. Everybody states a claim in the directory; nobody deals them out.

A peer takes a partition that is free. Of two claims to one the smaller PeerID keeps it, and the other takes another that
is free, or stays and shares when none is. So claims settle as soon as both peers have seen each other's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from protocols.ids import PeerID


def choose_partition(
    own: PeerID, claims: Mapping[PeerID, int], partitions: int, *, held: int | None
) -> int:
    """Return the partition to train on from now on.

    Args:
      claims: of the other live peers; claims out of range are ignored.
      held: the one we have claimed so far.
    """
    others = {
        peer: claim for peer, claim in claims.items() if peer != own and 0 <= claim < partitions
    }
    taken = Counter(others.values())
    if held is not None and 0 <= held < partitions:
        rivals = [peer for peer, claim in others.items() if claim == held]
        if not rivals or own < min(rivals) or len(taken) == partitions:
            return held
    # In an order of our own: newcomers of the same moment seldom choose the same one.
    order = sorted(range(partitions), key=lambda number: _hash(own, number))
    return min(order, key=lambda number: taken[number])


def _hash(peer: PeerID, number: int) -> bytes:
    return hashlib.blake2b(b"murmura partition:%d:" % number + peer, digest_size=8).digest()
