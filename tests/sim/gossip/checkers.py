"""What a gossip run promises, each watched from outside: from what the cores take and say, and from what is really held."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received
from protocols.gossip.events import (
    AdoptModel,
    Averaged,
    AverageModels,
    Left,
    ModelArrived,
    ModelFetched,
    PushAnswered,
    PushFailed,
    PushModel,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.messages import Leaving
from protocols.gossip.neighbourhood import FAILURES_MAX, OUT_S
from protocols.ids import PeerID
from tests.sim.engine import checker
from tests.sim.engine.checker import Progress, on

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld

Life = tuple[PeerID, int]
_LEAVE_S: Final = 10.0
_SLACK_S: Final = 2.0
_EPS_S: Final = 1e-3


class Checker(checker.Checker):
    """Watches one promise of a gossip run."""

    world: GossipWorld

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)


def _life(peer: GossipPeer) -> Life:
    return peer.peer_id, peer.life


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
        self._arrived[_life(peer), event.handle] = event

    @on(ContactsFound)
    def looked_up(self, peer: GossipPeer, event: ContactsFound) -> None:
        life, named = _life(peer), set(event.peers)
        for key in [k for k in self._newest if k[0] == life and k[1] not in named]:
            del self._newest[key]

    @on(AverageModels)
    def averages(self, peer: GossipPeer, effect: AverageModels) -> None:
        senders = [sender for sender, _ in effect.models]
        if len(set(senders)) < len(senders) or peer.peer_id in senders:
            raise self.broken(f"{peer.name} averages {senders}, one of them twice or itself")
        for sender, handle in effect.models:
            event = self._arrived.pop((_life(peer), handle), None)
            if event is None or event.peer != sender:
                raise self.broken(f"{peer.name} averages {handle}, which is no model that it has")
            key = (_life(peer), sender, effect.part)
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
        self._arrived[_life(peer), event.handle] = event

    @on(AverageModels)
    def averages(self, peer: GossipPeer, effect: AverageModels) -> None:
        layout = self.world.layout
        for sender, handle in effect.models:
            event = self._arrived.pop((_life(peer), handle), None)
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
        event = self._arrived.pop((_life(peer), effect.handle), None)
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
            self._good[_life(peer)] = event.sequence

    @on(RolledBack, AdoptModel)
    def began_anew(self, peer: GossipPeer, _: object) -> None:
        self._good.pop(_life(peer), None)

    @on(PushModel)
    def pushes(self, peer: GossipPeer, effect: PushModel) -> None:
        if effect.push.sequence != self._good.get(_life(peer)):
            raise self.broken(f"{peer.name} pushes {effect.push}, which is no finite snapshot")
        if not peer.good[effect.push.part].finite:
            raise self.broken(f"{peer.name} pushes numbers that are not finite")


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
        key = (_life(peer), effect.peer)
        self._calls[_life(peer), effect.call] = effect.peer
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
        target = self._calls.pop((_life(peer), event.call), None)
        if target is not None:
            self._on_way[_life(peer), target] -= 1


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
        life = _life(peer)
        self._calls[life, effect.call] = effect.peer
        since_s = self._dead_s.pop((life, effect.peer), None)
        if since_s is not None and peer.now_s - since_s < OUT_S - _EPS_S:
            raise self.broken(
                f"{peer.name} pushes to {effect.peer.decode()} {peer.now_s - since_s:.1f} s after it was lost"
            )

    @on(PushFailed)
    def failed(self, peer: GossipPeer, event: PushFailed) -> None:
        target = self._calls.pop((_life(peer), event.call), None)
        if target is None:
            return
        if event.busy:
            self._lives(peer, target)
            return
        neighbour = peer.core.neighbourhood.current.get(target)
        if neighbour is None:
            return
        key = (_life(peer), target)
        since_s, failures = self._failures.get(key, (neighbour.since_s, 0))
        failures = failures + 1 if since_s == neighbour.since_s else 1
        self._failures[key] = neighbour.since_s, failures
        if failures >= FAILURES_MAX:
            self._dies(peer, target, event.now_s)

    @on(PushAnswered)
    def answered(self, peer: GossipPeer, event: PushAnswered) -> None:
        target = self._calls.pop((_life(peer), event.call), None)
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
        for key in [k for k in self._dead_s if k[0] == _life(peer) and k[1] not in event.peers]:
            del self._dead_s[key]

    def _dies(self, peer: GossipPeer, target: PeerID, now_s: float) -> None:
        if target in peer.core.neighbourhood.current:  # else it may have been dead for long
            self._dead_s.setdefault((_life(peer), target), now_s)

    def _lives(self, peer: GossipPeer, target: PeerID) -> None:
        self._dead_s.pop((_life(peer), target), None)
        self._failures.pop((_life(peer), target), None)

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


class TrainingNeverWaits(Checker):
    """A peer that has a model always works on it, on one thing at a time; one that has none starts within bounded time."""

    promise = "training never waits"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._busy: set[Life] = set()
        self._began_s: dict[Life, float] = {}
        """The newest batch, by the peer's own clock."""
        self._starting_s: dict[Life, float] = {}

    @on(TrainBatch, TakeSnapshot, AverageModels, RollBack)
    def begins(self, peer: GossipPeer, effect: Any) -> None:
        if _life(peer) in self._busy:
            raise self.broken(f"{peer.name} is to do two things at once, {effect}")
        steps = self.world.steps
        if isinstance(effect, TrainBatch) and steps and peer.core.standing.trained >= steps:
            raise self.broken(f"{peer.name} trains more than {steps} batches")
        self._busy.add(_life(peer))
        if isinstance(effect, TrainBatch):
            self._began_s[_life(peer)] = peer.now_s

    @on(Trained, SnapshotTaken, Averaged, RolledBack)
    def ends(self, peer: GossipPeer, event: Any) -> None:
        self._busy.discard(_life(peer))

    def looked(self) -> None:
        for peer in self.world.peers.values():
            if not peer.up or peer.stopped or peer.draining or not peer.core.starting:
                self._starting_s.pop(_life(peer), None)
            if peer.up and not peer.stopped and not peer.draining:
                self._look(peer)

    def _look(self, peer: GossipPeer) -> None:
        now_s = self.world.clock.now_s
        # Nine neighbours may be asked, three at a time, and each may fail to send its model at the very end.
        longest_s = 45.0 + 9 * 2.5 * self.world.deadline_s
        if peer.core.starting:
            if now_s - self._starting_s.setdefault(_life(peer), now_s) > longest_s:
                raise self.broken(f"{peer.name} has no model after {longest_s:.0f} s")
        elif not peer.core.finished and _life(peer) not in self._busy and self._may_go_on(peer):
            raise self.broken(f"{peer.name} has a model and does nothing")

    def _may_go_on(self, peer: GossipPeer) -> bool:
        """Tell whether neither the run's pace nor its beginning hold it up."""
        spec, began_s = self.world.spec, self._began_s.get(_life(peer))
        if began_s is None:
            return len(peer.core.neighbourhood.current) >= spec.neighbours_to_start
        return peer.now_s > began_s + spec.batch_every_s + _EPS_S


class LeavesInTime(Checker):
    """Who is told to leave is gone within ten seconds, whatever is on its way."""

    promise = "leaves in time"

    def __init__(self, world: GossipWorld) -> None:
        super().__init__(world)
        self._since_s: dict[Life, float] = {}

    @on(DrainWanted)
    def told(self, peer: GossipPeer, event: DrainWanted) -> None:
        self._since_s.setdefault(_life(peer), self.world.clock.now_s)

    @on(Left)
    def left(self, peer: GossipPeer, effect: Left) -> None:
        self._since_s.pop(_life(peer), None)

    def looked(self) -> None:
        now_s = self.world.clock.now_s
        for peer in self.world.peers.values():
            since_s = self._since_s.get(_life(peer))
            if since_s is None or not peer.up:
                continue
            if peer.stopped:
                self._since_s[_life(peer)] = now_s
            elif now_s - since_s > _LEAVE_S + _SLACK_S:
                raise self.broken(f"{peer.name} is there {now_s - since_s:.0f} s after its drain")


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


ALL: tuple[type[checker.Checker], ...] = (
    CountedOnce,
    OnlySound,
    NothingBrokenSpreads,
    Bounded,
    TrafficBounded,
    DeadIsReplaced,
    TrainingNeverWaits,
    LeavesInTime,
    NobodyHonestBlamed,
    MixingGoesOn,
)
