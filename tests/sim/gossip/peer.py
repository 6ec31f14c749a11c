"""One simulated peer of a gossip run: the real core, and a few lines in place of tensors, sockets and threads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocols.core import ContactsFound, DrainWanted, PeerDown, Received
from protocols.gossip.events import (
    AdoptModel,
    AnswerPush,
    AskOffer,
    Averaged,
    AverageModels,
    DropModel,
    FetchModel,
    Left,
    LookForContacts,
    ModelArrived,
    ModelFailed,
    ModelFetched,
    OfferAnswered,
    OfferFailed,
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
from protocols.gossip.gossip import Gossip
from protocols.gossip.messages import ModelOffer, Push, PushAnswer
from protocols.ids import PeerID
from tests.sim.engine.call import Call
from tests.sim.engine.peer import SimPeer
from tests.sim.gossip import model as models
from tests.sim.gossip.model import Model, Part

if TYPE_CHECKING:
    from tests.sim.gossip.liar import LyingNeighbour
    from tests.sim.gossip.world import GossipWorld

_BUSY: Final = "busy"
_COPY_SHARE: Final = 0.05
"""What copying or averaging a model takes, of a batch."""
_FAREWELL_S: Final = 2.0
"""The longest that a process takes to exit."""
_LOOK_S: Final = 0.2
"""What an extra look into the directory takes."""


@dataclass(frozen=True, slots=True)
class Body:
    """What comes behind a push."""

    part: Part
    elements: int
    dtype_right: bool = True


class GossipPeer(SimPeer):
    """A node: the core, its model and the models of others that it holds."""

    world: GossipWorld

    def __init__(self, world: GossipWorld, peer_id: PeerID, *, founder: bool) -> None:
        super().__init__(world, peer_id)
        self._founder = founder
        self.lies: LyingNeighbour | None = None

    # --- life ---

    def boot(self, saved: None) -> None:
        """Begin with an untrained model; nothing is on the disk."""
        world = self.world
        self.model = models.initial(len(world.layout.part_elements))
        self.good: Model = self.model
        """The last finite snapshot, or the initial weights."""
        self.snapshot: tuple[int, int] | None = None
        """Epoch and sequence of it."""
        self.held: dict[int, Part | Model] = {}
        self._handles = 0
        self._arrivals: dict[int, PushCall] = {}
        self.core = Gossip(
            self.peer_id,
            world.spec,
            world.layout,
            seed=world.seed,
            epoch=1 + int(1000 * world.clock.now_s),
            rng=random.Random(self.rng.getrandbits(32)),
            steps=world.steps,
            founds=self._founder,
        )
        self._founder = False
        self.begin(self.core)
        self._look_again(self.life)

    def _look_again(self, life: int) -> None:
        """Look into the directory, again and again."""
        if self.up and life == self.life:
            if not self.stopped:
                self._look()
            self.world.clock.after(self.world.look_s, self._look_again, life)

    def _look(self) -> None:
        directory = self.world.directory
        if directory.available:  # what is out names nobody, and that is no news
            self._take(ContactsFound(self.now_s, directory.members()))

    def lose(self, peer: PeerID) -> None:
        self._take(PeerDown(self.now_s, peer))

    def take(self, source: PeerID, message: Any) -> None:
        self._take(Received(self.now_s, source, message))

    def leave_in_order(self) -> None:
        self._take(DrainWanted(self.now_s))

    def _take(self, event: Any) -> None:
        self.drive(self.core, event)

    # --- what the core says ---

    def do(self, effect: Any) -> None:
        match effect:
            case TrainBatch():
                self._work(1.0, self._trained)
            case TakeSnapshot():
                self._work(_COPY_SHARE, self._copied, effect.sequence)
            case AverageModels():
                parts = [(peer, self._release(handle)) for peer, handle in effect.models]
                self._work(_COPY_SHARE, self._averaged, effect.part, parts)
            case RollBack():
                self.model = self.good
                self._work(_COPY_SHARE, self._rolled_back)
            case AdoptModel():
                self.model = self.good = self._release(effect.handle)
                self.snapshot = None
            case PushModel():
                PushCall(self, effect).begin(self.world.deadline_s)
            case AnswerPush():
                self._answer(effect)
            case DropModel():
                self._release(effect.handle)
            case AskOffer():
                OfferCall(self, effect.peer).begin(self.world.deadline_s)
            case FetchModel():
                FetchCall(self, effect.peer, effect.offer).begin(2 * self.world.deadline_s)
            case LookForContacts():
                self.later(_LOOK_S, self._look)
            case Left():
                self.later(self.world.scaled(_FAREWELL_S) * self.rng.random(), self.gone)
            case _:
                super().do(effect)

    def _work(self, batches: float, done: Any, *args: object) -> None:
        seconds = batches * self.world.batch_s * self.slowness * (0.8 + 0.4 * self.rng.random())
        self.later(seconds, done, *args)

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate

    # --- work on our model ---

    def _trained(self) -> None:
        finite = not self._happens(self.world.divergence)
        self.model = models.trained(self.model, self.peer_id, self.world.clock.now_s, finite=finite)
        # A loss may still be finite when the weights after it are not.
        self._take(Trained(self.now_s, finite or self.rng.random() < 0.5))

    def _copied(self, sequence: int) -> None:
        finite = models.is_finite(self.model)
        if finite:
            self.good = self.model
            self.snapshot = self.core.standing.epoch, sequence
        self._take(SnapshotTaken(self.now_s, sequence, finite))

    def _averaged(self, part: int, received: list[tuple[PeerID, Any]]) -> None:
        refused = tuple(peer for peer, _ in received if self._happens(self.world.odd_variances))
        kept = [body for peer, body in received if peer not in refused]
        mixed = models.averaged(self.model[part], kept)
        if self._happens(self.world.diverged_averages):
            mixed = models.broken(mixed)
        self.model = models.with_part(self.model, part, mixed)
        self._take(Averaged(self.now_s, part, refused, mixed.finite))
        self.world.advanced()

    def _rolled_back(self) -> None:
        self._take(RolledBack(self.now_s))

    # --- models of others ---

    def _hold(self, body: Part | Model) -> int:
        self._handles += 1
        self.held[self._handles] = body
        return self._handles

    def _release(self, handle: int) -> Any:
        return self.held.pop(handle)

    def take_push(
        self, source: PeerID, push: Push, body: Body, call: PushCall | None = None
    ) -> None:
        """Take a push; a stranger's frame may have no body."""
        handle = self._hold(body.part)
        if call is not None:
            self._arrivals[handle] = call
        elements = body.elements if self.core.takes_from(source) else 0
        self._take(
            ModelArrived(
                self.now_s, source, push, handle, elements, body.dtype_right, body.part.finite
            )
        )

    def _answer(self, effect: AnswerPush) -> None:
        verdict = effect.answer.verdict
        if verdict != "taken":
            self._release(effect.handle)
        call = self._arrivals.pop(effect.handle, None)
        if call is not None:
            call.answer(self.lies.verdict(verdict) if self.lies is not None else verdict)

    def offered(self) -> ModelOffer:
        """Say what can be fetched from us."""
        standing, digest = self.core.offer, self.world.layout.digest
        if standing is None or self.snapshot is None:
            return ModelOffer(0, 0, digest, 0, 0, b"", b"")
        return ModelOffer(
            standing.epoch, standing.sequence, digest, standing.trained, standing.averages,
            root_of(self.snapshot), b"s" * 64,
        )  # fmt: skip


def root_of(snapshot: tuple[int, int]) -> bytes:
    """Name a snapshot, as its bytes' hash does."""
    return b"%016d%016d" % snapshot


class PushCall(Call):
    """Our push to a neighbour."""

    __slots__ = ("body", "effect", "served")
    asker: GossipPeer

    def __init__(self, asker: GossipPeer, effect: PushModel) -> None:
        super().__init__(asker.world, asker, effect.peer)
        self.effect = effect
        self.served = False
        part = effect.push.part
        self.body = Body(asker.good[part], asker.world.layout.part_elements[part])

    def serve(self, target: GossipPeer) -> None:
        if self.served:
            return  # a stream carries its request once
        self.served = True
        if target._happens(target.world.busy):
            self.answer(_BUSY)
        else:
            target.take_push(self.asker.peer_id, self.effect.push, self.body, self)

    def answered(self, what: Any) -> None:
        asker, call = self.asker, self.effect.call
        if what == _BUSY:
            asker._take(PushFailed(asker.now_s, call, busy=True))
        else:
            asker._take(PushAnswered(asker.now_s, call, PushAnswer(what)))

    def failed(self) -> None:
        self.asker._take(PushFailed(self.asker.now_s, self.effect.call))


class OfferCall(Call):
    """A newcomer's question which model there is."""

    asker: GossipPeer
    __slots__ = ()

    def __init__(self, asker: GossipPeer, peer: PeerID) -> None:
        super().__init__(asker.world, asker, peer)

    def serve(self, target: GossipPeer) -> None:
        self.answer(target.offered())

    def answered(self, what: ModelOffer) -> None:
        self.asker._take(OfferAnswered(self.asker.now_s, self.target_id, what))

    def failed(self) -> None:
        self.asker._take(OfferFailed(self.asker.now_s, self.target_id))


class FetchCall(Call):
    """A newcomer's fetch of the model that was offered."""

    asker: GossipPeer
    __slots__ = ("offer",)

    def __init__(self, asker: GossipPeer, peer: PeerID, offer: ModelOffer) -> None:
        super().__init__(asker.world, asker, peer)
        self.offer = offer

    def serve(self, target: GossipPeer) -> None:
        kept = target.snapshot is not None and root_of(target.snapshot) == self.offer.root
        self.answer(target.good if kept else None)

    def answered(self, what: Model | None) -> None:
        asker = self.asker
        if what is None or asker._happens(asker.world.failed_fetches / 2):
            self.failed()
            return
        worse = asker._happens(asker.world.failed_fetches / 2)
        handle = asker._hold(what)
        asker._take(
            ModelFetched(asker.now_s, self.target_id, handle, True, 9.0 if worse else 1.0, 5.0)
        )

    def failed(self) -> None:
        self.asker._take(ModelFailed(self.asker.now_s, self.target_id))
