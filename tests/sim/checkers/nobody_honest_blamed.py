"""Nobody honest is blamed, whatever the network does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ids import PeerID
from tests.sim.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.peer import SimPeer


class NobodyHonestBlamed(Checker):
    """The world knows who lies."""

    promise = "nobody honest blamed"

    def blamed(self, by: SimPeer, peer: PeerID, reason: str) -> None:
        if peer not in self.world.liars | self.world.forgers:
            raise self.broken(f"{by.name} blamed {peer.decode()}: {reason}")
