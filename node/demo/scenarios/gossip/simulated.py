"""The demo's peers in virtual time: the product's cores, learners and arithmetic, with made-up delays.

Shows what the same swarm does without the correction, and how far apart two runs of the same swarm may be.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from protocols.claims import choose_partition
from protocols.core import Blame, ContactsFound, PeerDown, Send, Tick
from protocols.gossip.events import (
    AdoptModel,
    AnswerPush,
    AskOffer,
    Averaged,
    AverageModels,
    DropModel,
    FetchModel,
    GossipEffect,
    GossipEvent,
    Left,
    LookForContacts,
    ModelArrived,
    ModelFailed,
    ModelFetched,
    OfferAnswered,
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
from protocols.gossip.messages import ModelOffer
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from protocols.run import RunSpec
from swarm.gossip.models import Models, Received
from swarm.learner.learner import Learner
from swarm.learner.task import Task
from swarm.models.classifier import peer_seed

_PUSH_S: Final = (0.01, 0.08)
"""A push takes this long, drawn anew each time: what the demo's nodes need on two busy cores."""
_JITTER: Final = 0.2
"""A batch begins up to this share of the pace late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What is done to the peers, at which mean step of those that live."""

    kill_at: int
    join_at: int


@dataclass(slots=True)
class Course:
    """How the mean accuracy of the living peers went, by the mean number of snapshots they had pushed."""

    exchanges: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    """Mean batches trained at the same looks."""
    accuracy: list[float] = field(default_factory=list)

    def first_at(self, accuracy: float) -> float | None:
        """Return after how many exchanges the mean accuracy was first that high; None when it never was."""
        pairs = zip(self.exchanges, self.accuracy, strict=True)
        return next((exchanges for exchanges, found in pairs if found >= accuracy), None)

    def at(self, batches: float) -> float:
        """Return the accuracy at the look nearest to so many batches."""
        looks = range(len(self.batches))
        return self.accuracy[min(looks, key=lambda look: abs(self.batches[look] - batches))]


class _Peer:
    """One simulated peer."""

    def __init__(self, name: PeerID, run: RunSpec, task: Task, spec: GossipSpec, part: int) -> None:
        self.name = name
        batches = task.batches(part, salt=bytes(name))
        self.learner = Learner(run, task, batches, seed=peer_seed(run.seed, name))
        self.models = Models(self.learner, spec)
        self.part = part
        self.core: Gossip | None = None
        self.alive = True
        self.exchanges = 0
        self.calls: dict[int, tuple[PeerID, int]] = {}
        """Handle of a model that came -> (who pushed it, the number of its call)."""


class SimulatedSwarm:
    """Peers of one run. `seed` draws identities and delays."""

    def __init__(
        self, run: RunSpec, task: Task, spec: GossipSpec, *, peers: int, seed: int
    ) -> None:
        self._run = run
        self._task = task
        self._spec = spec
        self._seed = seed
        self._rng = random.Random(f"simulated gossip:{seed}")
        self._now_s = 0.0
        self._order = itertools.count()
        self._handles = itertools.count(1)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._peers: dict[PeerID, _Peer] = {}
        for index in range(peers):
            self._add(index)
        for peer in self._living():
            self._open(peer, founds=True)
        self._tell_all()

    def play(self, events: Events | None = None, *, look_every: int = 10) -> Course:
        """Go on until every peer that lives has trained all its batches."""
        course = Course()
        looked = -1
        killed = joined = events is None
        while self._heap and not all(self._core(peer).finished for peer in self._living()):
            self._now_s, _, action = heapq.heappop(self._heap)
            action()
            step = self._step()
            if step // look_every > looked:
                looked = step // look_every
                self._look(course)
            if events is not None and not killed and step >= events.kill_at:
                killed = True
                self._kill()
            if events is not None and not joined and step >= events.join_at:
                joined = True
                self._open(self._add(len(self._peers)), founds=False)
                self._tell_all()
        self._look(course)
        return course

    # --- who is there ---

    def _add(self, index: int) -> _Peer:
        digest = hashlib.sha256(b"%d:%d" % (self._seed, index)).digest()
        name = PeerID(bytes.fromhex("002408011220") + digest)
        claims = {peer.name: peer.part for peer in self._living()}
        part = choose_partition(name, claims, self._task.partitions, held=None)
        peer = self._peers[name] = _Peer(name, self._run, self._task, self._spec, part)
        return peer

    def _open(self, peer: _Peer, *, founds: bool) -> None:
        peer.core = Gossip(
            peer.name, self._spec, peer.models.layout, seed=self._run.seed, epoch=1,
            rng=random.Random(self._rng.getrandbits(64)), steps=self._run.training.steps, founds=founds,
        )  # fmt: skip
        for effect in peer.core.start(self._now_s):
            self._perform(peer, effect)

    def _living(self) -> list[_Peer]:
        return [peer for peer in self._peers.values() if peer.alive]

    def _core(self, peer: _Peer) -> Gossip:
        assert peer.core is not None
        return peer.core

    def _tell_all(self) -> None:
        names = tuple(peer.name for peer in self._living())
        for peer in self._living():
            others = tuple(name for name in names if name != peer.name)
            self._feed(peer, ContactsFound(self._now_s, others))

    def _kill(self) -> None:
        victim = self._rng.choice(self._living())
        victim.alive = False
        for peer in self._living():
            self._feed(peer, PeerDown(self._now_s, victim.name))
        self._tell_all()

    def _step(self) -> int:
        return int(statistics.fmean(peer.learner.trained for peer in self._living()))

    def _look(self, course: Course) -> None:
        living = self._living()
        found = [peer.learner.evaluate().accuracy or 0.0 for peer in living]
        course.exchanges.append(statistics.fmean(peer.exchanges for peer in living))
        course.batches.append(statistics.fmean(peer.learner.trained for peer in living))
        course.accuracy.append(statistics.fmean(found))

    # --- events and effects ---

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._now_s + delay_s, next(self._order), action))

    def _feed(self, peer: _Peer, event: GossipEvent) -> None:
        core = self._core(peer)
        for effect in core.handle(event):
            self._perform(peer, effect)
        wake_at_s = core.wake_at_s
        if wake_at_s < float("inf"):
            self._after(max(0.0, wake_at_s - self._now_s) + 1e-6, lambda: self._tick(peer))

    def _tick(self, peer: _Peer) -> None:
        if peer.alive and self._now_s >= self._core(peer).wake_at_s:
            self._feed(peer, Tick(self._now_s))

    def _later(self, peer: _Peer, delay_s: float, event: Callable[[], GossipEvent]) -> None:
        self._after(delay_s, lambda: self._feed(peer, event()) if peer.alive else None)

    def _perform(self, peer: _Peer, effect: GossipEffect) -> None:
        models = peer.models
        match effect:
            case TrainBatch():
                delay_s = self._rng.uniform(0.0, _JITTER) * self._spec.batch_every_s
                self._later(
                    peer, delay_s, lambda: Trained(self._now_s, peer.learner.train_batch().finite)
                )
            case TakeSnapshot(sequence):
                vector = models.copy()
                if vector is not None:
                    models.keep(sequence, vector)
                    peer.exchanges += 1
                finite = vector is not None
                self._later(peer, 0.0, lambda: SnapshotTaken(self._now_s, sequence, finite))
            case AverageModels(part, senders):
                received = [(who, models.received.pop(handle)) for who, handle in senders]
                done = models.average(part, [model for _, model in received])
                refused = tuple(received[row][0] for row in done.refused)
                self._later(peer, 0.0, lambda: Averaged(self._now_s, part, refused, done.finite))
            case RollBack():
                models.roll_back()
                self._later(peer, 0.0, lambda: RolledBack(self._now_s))
            case AdoptModel(handle, trained):
                models.adopt(models.received.pop(handle).vector, trained)
            case PushModel():
                self._push(peer, effect)
            case AnswerPush(handle, answer):
                if answer.verdict != "taken":
                    models.received.pop(handle, None)
                who, call = peer.calls.pop(handle)
                sender = self._peers[who]
                self._later(sender, 0.0, lambda: PushAnswered(self._now_s, call, answer))
            case DropModel(handle):
                models.received.pop(handle, None)
            case AskOffer(who):
                offer = self._offer(self._peers[who])
                self._later(
                    peer,
                    self._rng.uniform(*_PUSH_S),
                    lambda: OfferAnswered(self._now_s, who, offer),
                )
            case FetchModel(who, _):
                self._fetch(peer, self._peers[who])
            case LookForContacts() | Send() | Blame() | Left():
                pass

    def _push(self, peer: _Peer, effect: PushModel) -> None:
        target = self._peers[effect.peer]
        sent = peer.models.open_part(effect.push.sequence, effect.push.part)

        def arrive() -> None:
            peer.models.close_part(effect.push.sequence)
            if not target.alive:
                if peer.alive:
                    self._feed(peer, PushFailed(self._now_s, effect.call))
                return
            handle = next(self._handles)
            measured = target.models.measure(sent, effect.push.part)
            target.models.received[handle] = Received(peer.name, sent, measured)
            target.calls[handle] = peer.name, effect.call
            self._feed(
                target,
                ModelArrived(
                    self._now_s, peer.name, effect.push, handle,
                    elements=sent.numel(), dtype_right=True, finite=measured.finite,
                ),
            )  # fmt: skip

        self._after(self._rng.uniform(*_PUSH_S), arrive)

    def _offer(self, of: _Peer) -> ModelOffer:
        standing = self._core(of).offer
        layout = of.models.layout.digest
        if standing is None or not of.alive:
            return ModelOffer(1, 0, layout, 0, 0, b"", b"")
        return ModelOffer(
            standing.epoch, standing.sequence, layout, standing.trained, standing.averages, bytes(32), b""
        )  # fmt: skip

    def _fetch(self, peer: _Peer, donor: _Peer) -> None:
        vector: Tensor | None = donor.models.newest if donor.alive else None
        if vector is None:
            self._later(peer, 0.0, lambda: ModelFailed(self._now_s, donor.name))
            return
        measured = peer.models.measure(vector, None)
        loss, own_loss = peer.models.try_out(vector)
        handle = next(self._handles)
        peer.models.received[handle] = Received(donor.name, vector, measured)
        self._later(
            peer, self._rng.uniform(*_PUSH_S),
            lambda: ModelFetched(self._now_s, donor.name, handle, measured.finite, loss, own_loss),
        )  # fmt: skip
