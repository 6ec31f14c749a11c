"""Who is dead is replaced; who is honest is not blamed; what is trained reaches all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocols.core import Blame, ContactsFound, PeerDown, Received
from protocols.gossip.events import (
    ModelArrived,
    PushAnswered,
    PushFailed,
    PushModel,
)
from protocols.gossip.messages import Leaving
from protocols.gossip.neighbourhood import FAILURES_MAX, OUT_S
from protocols.ids import PeerID
from tests.sim.engine.checker import Progress, on
from tests.sim.gossip.checkers.checker import Checker, Life, life_of

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld

_EPS_S: Final = 1e-3


class DeadIsReplaced(Checker):
    """Who is taken for dead is left alone for half a minute, unless it is heard; others take its place in the graph.

    Two failed pushes in a row, a lost connection and a farewell each show that a peer is dead.
    """

    promise = "dead is replaced"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._calls: dict[tuple[Life, int], PeerID] = {}
        self._failures: dict[tuple[Life, PeerID], tuple[float, int]] = {}
        """How often in a row, in the time that it has been a neighbour, by when that began."""
        self._dead_s: dict[tuple[Life, PeerID], float] = {}

    @on(PushModel)
    def pushes(self, peer: GossipPeer, effect: PushModel) -> None:
        life = life_of(peer)
        self._calls[life, effect.call] = effect.peer
        since_s = self._dead_s.pop((life, effect.peer), None)
        if since_s is not None and peer.now_s - since_s < OUT_S - _EPS_S:
            raise self.broken(
                f"{peer.name} pushes to {effect.peer.decode()} {peer.now_s - since_s:.1f} s after it was lost"
            )

    @on(PushFailed)
    def failed(self, peer: GossipPeer, event: PushFailed) -> None:
        target = self._calls.pop((life_of(peer), event.call), None)
        if target is None:
            return
        if event.busy:
            self._lives(peer, target)
            return
        neighbour = peer.core.neighbourhood.current.get(target)
        if neighbour is None:
            return
        key = (life_of(peer), target)
        since_s, failures = self._failures.get(key, (neighbour.since_s, 0))
        failures = failures + 1 if since_s == neighbour.since_s else 1
        self._failures[key] = neighbour.since_s, failures
        if failures >= FAILURES_MAX:
            self._dies(peer, target, event.now_s)

    @on(PushAnswered)
    def answered(self, peer: GossipPeer, event: PushAnswered) -> None:
        target = self._calls.pop((life_of(peer), event.call), None)
        if target is None:
            return
        if event.answer.verdict == "draining":
            self._dies(peer, target, event.now_s)
        else:
            self._lives(peer, target)

    @on(PeerDown)
    def lost(self, peer: GossipPeer, event: PeerDown) -> None:
        self._dies(peer, event.peer, event.now_s)

    @on(Received)
    def received(self, peer: GossipPeer, event: Received) -> None:
        if isinstance(event.message, Leaving):
            self._dies(peer, event.peer, event.now_s)

    @on(ModelArrived)
    def arrived(self, peer: GossipPeer, event: ModelArrived) -> None:
        self._lives(peer, event.peer)

    @on(ContactsFound)
    def looked_up(self, peer: GossipPeer, event: ContactsFound) -> None:
        """Whom the directory does not name any more is forgotten, and begins anew when it is named again."""
        for key in [k for k in self._dead_s if k[0] == life_of(peer) and k[1] not in event.peers]:
            del self._dead_s[key]

    def _dies(self, peer: GossipPeer, target: PeerID, now_s: float) -> None:
        if target in peer.core.neighbourhood.current:  # else it may have been dead for long
            self._dead_s.setdefault((life_of(peer), target), now_s)

    def _lives(self, peer: GossipPeer, target: PeerID) -> None:
        self._dead_s.pop((life_of(peer), target), None)
        self._failures.pop((life_of(peer), target), None)

    def looked(self) -> None:
        for peer in self.world.peers.values():
            if peer.up:
                self._look(peer)

    def _look(self, peer: GossipPeer) -> None:
        around = peer.core.neighbourhood
        out = {p for p, left_out in around._out.items() if not left_out.on_trial}
        live = around.contacts - out
        if around.current.keys() - live:
            raise self.broken(f"{peer.name} keeps neighbours that it takes for dead")
        spec = self.world.spec
        everybody = spec.neighbours == "full" or (
            spec.neighbours == "random" and len(live) <= spec.degree
        )
        if len(around.current) < (len(live) if everybody else min(1, len(live))):
            raise self.broken(f"{peer.name} has {len(around.current)} neighbours of {len(live)}")


class NobodyHonestBlamed(Checker):
    """The world knows who lies."""

    promise = "nobody honest blamed"

    @on(Blame)
    def blamed(self, by: GossipPeer, blame: Blame) -> None:
        if blame.peer not in self.world.liars:
            raise self.broken(f"{by.name} blamed {blame.peer.decode()}: {blame.reason}")


class MixingGoesOn(Progress):
    """Liveness: once faults end, what each peer trains reaches each other one, over as many averages as that takes."""

    promise = "mixing goes on"
