"""What is averaged, adopted and pushed: each model once, only sound ones, nothing broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.core import ContactsFound
from protocols.gossip.events import (
    AdoptModel,
    AverageModels,
    ModelArrived,
    ModelFetched,
    PushModel,
    RolledBack,
    SnapshotTaken,
)
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.gossip.checkers.checker import Checker, Life, life_of

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld


class CountedOnce(Checker):
    """No model is counted twice: not in one average, and not in two; and of each sender only ever a later one, as long as
    the directory names it."""

    promise = "counted once"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._arrived: dict[tuple[Life, int], ModelArrived] = {}
        self._newest: dict[tuple[Life, PeerID, int], tuple[int, int]] = {}

    @on(ModelArrived)
    def arrived(self, peer: GossipPeer, event: ModelArrived) -> None:
        self._arrived[life_of(peer), event.handle] = event

    @on(ContactsFound)
    def looked_up(self, peer: GossipPeer, event: ContactsFound) -> None:
        life, named = life_of(peer), set(event.peers)
        for key in [k for k in self._newest if k[0] == life and k[1] not in named]:
            del self._newest[key]

    @on(AverageModels)
    def averages(self, peer: GossipPeer, effect: AverageModels) -> None:
        senders = [sender for sender, _ in effect.models]
        if len(set(senders)) < len(senders) or peer.peer_id in senders:
            raise self.broken(f"{peer.name} averages {senders}, one of them twice or itself")
        for sender, handle in effect.models:
            event = self._arrived.pop((life_of(peer), handle), None)
            if event is None or event.peer != sender:
                raise self.broken(f"{peer.name} averages {handle}, which is no model that it has")
            key = (life_of(peer), sender, effect.part)
            if event.push.age <= self._newest.get(key, (-1, -1)):
                raise self.broken(f"{peer.name} averages {event.push}, after a later one")
            self._newest[key] = event.push.age


class OnlySound(Checker):
    """What is averaged or adopted is finite, of this run's layout and of this part, and from a neighbour."""

    promise = "only sound models"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._arrived: dict[tuple[Life, int], ModelArrived | ModelFetched] = {}

    @on(ModelArrived, ModelFetched)
    def arrived(self, peer: GossipPeer, event: ModelArrived | ModelFetched) -> None:
        self._arrived[life_of(peer), event.handle] = event

    @on(AverageModels)
    def averages(self, peer: GossipPeer, effect: AverageModels) -> None:
        layout = self.world.layout
        for sender, handle in effect.models:
            event = self._arrived.pop((life_of(peer), handle), None)
            if not isinstance(event, ModelArrived):
                continue
            size = layout.part_elements[effect.part]
            fits = event.push.layout == layout.digest and event.push.part == effect.part
            if not fits or event.elements != size or not event.dtype_right:
                raise self.broken(f"{peer.name} averages what is no part {effect.part}: {event}")
            if not event.finite:
                raise self.broken(f"{peer.name} averages what is not finite: {event}")
            if sender not in peer.core.neighbourhood.current:
                raise self.broken(f"{peer.name} averages a model of {sender!r}, no neighbour")

    @on(AdoptModel)
    def adopts(self, peer: GossipPeer, effect: AdoptModel) -> None:
        event = self._arrived.pop((life_of(peer), effect.handle), None)
        good = isinstance(event, ModelFetched) and event.finite and event.loss <= event.own_loss
        if not good:
            raise self.broken(f"{peer.name} starts from {event}")


class NothingBrokenSpreads(Checker):
    """A push is of the newest snapshot, and that is finite."""

    promise = "nothing broken spreads"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._good: dict[Life, int] = {}

    @on(SnapshotTaken)
    def copied(self, peer: GossipPeer, event: SnapshotTaken) -> None:
        if event.finite:
            self._good[life_of(peer)] = event.sequence

    @on(RolledBack, AdoptModel)
    def began_anew(self, peer: GossipPeer, _: object) -> None:
        self._good.pop(life_of(peer), None)

    @on(PushModel)
    def pushes(self, peer: GossipPeer, effect: PushModel) -> None:
        if effect.push.sequence != self._good.get(life_of(peer)):
            raise self.broken(f"{peer.name} pushes {effect.push}, which is no finite snapshot")
        if not peer.good[effect.push.part].finite:
            raise self.broken(f"{peer.name} pushes numbers that are not finite")
