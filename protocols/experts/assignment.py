"""Which node should host which expert: the same answer at every node that sees the same."""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping

from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID


def preference(uid: ExpertUID, nodes: Iterable[PeerID]) -> list[PeerID]:
    """Return the nodes in the expert's own order (rendezvous hashing): the same for everybody, another for each expert."""
    return sorted(nodes, key=functools.partial(_rank, uid))


@functools.lru_cache(maxsize=1 << 16)
def _rank(uid: ExpertUID, node: PeerID) -> bytes:
    return hashlib.blake2b(b"%s\0%s" % (str(uid).encode(), node), digest_size=8).digest()


def assign(
    orphans: Iterable[ExpertUID],
    rooms: Mapping[PeerID, int],
    hosted: Mapping[PeerID, int],
    *,
    total: int,
) -> dict[ExpertUID, list[PeerID]]:
    """Return who should take each orphan, and who next if that one does not.

    A node below its fair share comes before one above it, then the expert's own order counts. Nodes without room get nothing.

    Args:
      rooms: experts each node has room for.
      hosted: experts each node has now.
      total: experts in the run.
    """
    load = Counter({node: hosted.get(node, 0) for node in rooms})
    share = math.ceil(total / max(1, len(rooms)))
    orders = {}
    for uid in sorted(orphans):
        free = [node for node in rooms if load[node] < rooms[node]]
        order = preference(uid, free)
        order.sort(key=lambda node: load[node] >= share)
        if order:
            load[order[0]] += 1
        orders[uid] = order
    return orders


def fraction(uid: ExpertUID) -> float:
    """Return a number between 0 and 1 that is this expert's own."""
    return hashlib.blake2b(str(uid).encode(), digest_size=1).digest()[0] / 256
