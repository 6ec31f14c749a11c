"""Fifty product cores in virtual time: a heap of events, and the product's arithmetic for what the cores want done.

Time is counted in ticks, of which a batch takes 8 to 12, as in the authors' simulator; a push takes 1 or 2, its answer 1.
What peers train at the same tick is computed together; what they average and push, one by one.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from benchmarks.gossip.population import Population
from protocols.core import Blame, ContactsFound
from protocols.gossip.events import (
    AnswerPush,
    AskOffer,
    Averaged,
    AverageModels,
    DropModel,
    GossipEffect,
    GossipEvent,
    ModelArrived,
    OfferFailed,
    PushAnswered,
    PushModel,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.gossip import Gossip
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from swarm.gossip.arithmetic import Moments, average_, moments

Lie: TypeAlias = Callable[["Swarm", Tensor], Tensor]
"""What a dishonest peer sends instead of its model."""


@dataclass(frozen=True, slots=True)
class Model:
    """Numbers on their way; never changed."""

    numbers: Tensor
    moments: Moments


@dataclass(slots=True)
class Curve:
    """What was seen of a run, every `every` rounds."""

    rounds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    """Mean over honest peers, percent."""
    variances: list[list[float]] = field(default_factory=list)
    """Of each tensor, mean over honest peers."""


class Swarm:
    """One run of the product's cores over a population."""

    def __init__(
        self,
        population: Population,
        spec: GossipSpec,
        *,
        seed: int,
        liars: frozenset[int] = frozenset(),
        lie: Lie | None = None,
    ) -> None:
        self.population = population
        self.spec = spec
        self._lie = lie
        self._liars = liars if lie is not None else frozenset()
        self.honest = [index for index in range(len(population)) if index not in liars]
        self._rng = random.Random(f"benchmark gossip:{seed}")
        self.peers = names(len(population))
        self._index = {peer: index for index, peer in enumerate(self.peers)}
        self._parts = population.table.parts(spec.parts)
        layout = population.table.layout(dtype="float32", parts=spec.parts)
        self.cores = [
            Gossip(
                peer, spec, layout, seed=seed, epoch=1,
                rng=random.Random(f"{seed}:{index}"), founds=True,
            )
            for index, peer in enumerate(self.peers)
        ]  # fmt: skip
        self._heap: list[tuple[int, int, int, GossipEvent]] = []
        self._order = 0
        self._now = 0
        self._training: dict[int, list[int]] = {}
        self._snapshots: dict[tuple[int, int], Model] = {}
        self._base = population.weights.clone()
        self._good = list(population.weights.clone())
        self._held: list[dict[int, Model]] = [{} for _ in self.peers]
        self._pushers: list[dict[int, tuple[int, int]]] = [{} for _ in self.peers]
        self._handle = 0
        self.snapshots_taken = 0
        self.averages = 0

    def run(self, *, rounds: int, every: int = 2) -> Curve:
        """Go on until each peer has pushed `rounds` times on average."""
        curve = Curve()
        self._look(curve, 0.0)
        for index, core in enumerate(self.cores):
            self._do(index, core.start(0.0))
            self._feed(index, ContactsFound(0.0, tuple(self.peers)))
        looked = 0
        while looked < rounds:
            self._step()
            if self.snapshots_taken >= (looked + every) * len(self.peers):
                looked += every
                self._look(curve, float(looked))
        return curve

    def _look(self, curve: Curve, rounds: float) -> None:
        curve.rounds.append(rounds)
        curve.accuracy.append(self.population.accuracy(self.honest))
        seen = self.population.weights[self.honest]
        curve.variances.append(
            [float(seen[:, a:b].var(dim=1).mean()) if b - a > 1 else 0.0
             for a, b in self.population.table.bounds]
        )  # fmt: skip

    def _step(self) -> None:
        """Do everything of the next tick at which something happens."""
        due = [*self._training, *(entry[0] for entry in self._heap[:1])]
        self._now = min(due)
        if who := self._training.pop(self._now, None):
            self.population.train(who)
            for index in who:
                self._feed(index, Trained(self._now, True))
        while self._heap and self._heap[0][0] <= self._now:
            _, _, index, event = heapq.heappop(self._heap)
            self._feed(index, event)

    def _later(self, ticks: int, index: int, event: GossipEvent) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self._now + ticks, self._order, index, event))

    def _feed(self, index: int, event: GossipEvent) -> None:
        self._do(index, self.cores[index].handle(event))

    def _do(self, index: int, effects: object) -> None:
        assert isinstance(effects, list | tuple)
        for effect in effects:
            self._do_one(index, effect)

    def _do_one(self, index: int, effect: GossipEffect) -> None:
        now = self._now
        match effect:
            case TrainBatch():
                self._training.setdefault(now + self._rng.randint(8, 12), []).append(index)
            case TakeSnapshot(sequence):
                finite = self._snapshot(index)
                self._feed(index, SnapshotTaken(now, sequence, finite))
            case RollBack():
                self.population.restore(index, self._good[index])
                self._base[index] = self._good[index]
                self._feed(index, RolledBack(now))
            case AskOffer(
                peer
            ):  # after three in a row; here nobody offers, so it goes on by itself
                self._later(1, index, OfferFailed(now + 1, peer))
            case PushModel():
                self._push(index, effect)
            case AnswerPush(handle, answer):
                sender, call = self._pushers[index].pop(handle)
                if answer.verdict != "taken":
                    del self._held[index][handle]
                self._later(1, sender, PushAnswered(now + 1, call, answer))
            case Blame():
                pass
            case DropModel(handle):
                del self._held[index][handle]
            case AverageModels():
                self._average(index, effect)
            case _:
                raise AssertionError(f"nothing here should lead to {effect}")

    def _snapshot(self, index: int) -> bool:
        """Copy a model for its pushes, or what a liar sends in its place; tell whether it is finite."""
        self.snapshots_taken += 1
        numbers = self.population.weights[index].clone()
        models = self._models(numbers)
        if not all(model.moments.finite for model in models):
            return False
        self._good[index] = numbers
        self._base[index] = numbers
        if index in self._liars and self._lie is not None:
            models = self._models(self._lie(self, numbers))
        for part, model in enumerate(models):
            self._snapshots[index, part] = model
        return True

    def _models(self, numbers: Tensor) -> list[Model]:
        pieces = [(numbers[table.start : table.end], table) for table in self._parts]
        return [Model(piece, moments(piece, table)) for piece, table in pieces]

    def _push(self, index: int, effect: PushModel) -> None:
        receiver = self._index[effect.peer]
        model = self._snapshots[index, effect.push.part]
        self._handle += 1
        self._held[receiver][self._handle] = model
        self._pushers[receiver][self._handle] = (index, effect.call)
        ticks = self._rng.randint(1, 2)
        arrived = ModelArrived(
            self._now + ticks, self.peers[index], effect.push, self._handle,
            len(model.numbers), True, model.moments.finite,
        )  # fmt: skip
        self._later(ticks, receiver, arrived)

    def _average(self, index: int, effect: AverageModels) -> None:
        table = self._parts[effect.part]
        models = [self._held[index].pop(handle) for _, handle in effect.models]
        done = average_(
            self.population.weights[index, table.start : table.end],
            [model.numbers for model in models],
            [model.moments for model in models],
            table,
            self.spec,
            base=self._base[index, table.start : table.end],
        )
        self.averages += 1
        refused = tuple(effect.models[row][0] for row in done.refused)
        self._feed(index, Averaged(self._now, effect.part, refused, done.finite))


def names(count: int) -> list[PeerID]:
    """Return the PeerIDs of the benchmark's peers."""
    return [PeerID(b"benchmark" + index.to_bytes(2, "big")) for index in range(count)]
