"""What is held, remembered and sent is bounded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from protocols.gossip.events import (
    PushAnswered,
    PushFailed,
    PushModel,
)
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.gossip.checkers.checker import Checker, Life, life_of

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld


class Bounded(Checker):
    """What is held and remembered is bounded by the neighbours and the parts, whatever is sent."""

    promise = "bounded"

    def looked(self) -> None:
        for peer in self.world.peers.values():
            if peer.up:
                self._look(peer)

    def _look(self, peer: GossipPeer) -> None:
        core, parts = peer.core, len(self.world.layout.part_elements)
        neighbours, contacts = len(core.neighbourhood.current), len(core.neighbourhood.contacts)
        # One more: the model that a newcomer has fetched.
        self._check(peer, "models held", len(peer.held), neighbours * parts + 1)
        self._check(peer, "models waiting", core.waiting, neighbours * parts)
        self._check(peer, "senders", len(core._inbox._senders), contacts * parts)
        self._check(peer, "peers left out", len(core.neighbourhood._out), contacts)
        self._check(peer, "contacts", contacts, len(self.world.peers))
        self._check(peer, "calls", core._pushes.on_the_way, len(self.world.peers))

    def _check(self, peer: GossipPeer, what: str, size: int, limit: int) -> None:
        if size > limit:
            raise self.broken(f"{peer.name} has {size} {what}, more than {limit}")


class TrafficBounded(Checker):
    """One push at a time is on its way to a peer, only to neighbours, and none twice with the same snapshot."""

    promise = "traffic bounded"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._calls: dict[tuple[Life, int], PeerID] = {}
        self._on_way: Counter[tuple[Life, PeerID]] = Counter()
        self._last: dict[tuple[Life, PeerID], tuple[int, int]] = {}

    @on(PushModel)
    def pushes(self, peer: GossipPeer, effect: PushModel) -> None:
        key = (life_of(peer), effect.peer)
        self._calls[life_of(peer), effect.call] = effect.peer
        self._on_way[key] += 1
        if self._on_way[key] > 1:
            raise self.broken(f"{peer.name} pushes to {effect.peer.decode()} beside another push")
        if effect.peer not in peer.core.neighbourhood.current:
            raise self.broken(f"{peer.name} pushes to {effect.peer.decode()}, no neighbour")
        if self._last.get(key) == effect.push.age:
            raise self.broken(f"{peer.name} pushes {effect.push} again")
        self._last[key] = effect.push.age

    @on(PushAnswered, PushFailed)
    def push_ended(self, peer: GossipPeer, event: PushAnswered | PushFailed) -> None:
        target = self._calls.pop((life_of(peer), event.call), None)
        if target is not None:
            self._on_way[life_of(peer), target] -= 1
