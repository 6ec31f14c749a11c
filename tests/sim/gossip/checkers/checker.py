"""A checker of a gossip run. What a peer took or said it remembers by the peer's life: a restarted one knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from protocols.ids import PeerID
from tests.sim.engine import checker

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld

Life: TypeAlias = tuple[PeerID, int]


class Checker(checker.Checker):
    """Watches one promise of a gossip run."""

    world: GossipWorld

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)


def life_of(peer: GossipPeer) -> Life:
    return peer.peer_id, peer.life
