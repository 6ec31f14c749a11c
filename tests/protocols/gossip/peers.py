"""One core in the hands of a test: made-up peers, and the answers a shell would give."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from protocols.core import ContactsFound
from protocols.gossip.events import (
    AnswerPush,
    Averaged,
    AverageModels,
    GossipEffect,
    GossipEvent,
    ModelArrived,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.gossip import Gossip
from protocols.gossip.messages import Push, Verdict
from protocols.gossip.pushes import ModelLayout
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID

EffectT = TypeVar("EffectT")
LAYOUT = ModelLayout(digest=b"l" * 32, part_elements=(100,))
QUARTERS = ModelLayout(digest=b"q" * 32, part_elements=(25, 25, 25, 25))


def peer(number: int) -> PeerID:
    return PeerID(b"peer" + number.to_bytes(4, "big"))


class Driven:
    """A core, its time, and everything it wanted."""

    def __init__(
        self,
        spec: GossipSpec | None = None,
        *,
        layout: ModelLayout = LAYOUT,
        others: int = 4,
        founds: bool = True,
        steps: int | None = None,
    ) -> None:
        self.layout = layout
        self.core = Gossip(
            peer(0), spec or GossipSpec(), layout,
            seed=7, epoch=1, rng=random.Random(1), steps=steps, founds=founds,
        )  # fmt: skip
        self.now_s = 0.0
        self.log: list[GossipEffect] = []
        self._handle = 0
        self.take(self.core.start(0.0))
        if others:
            self.feed(ContactsFound(0.0, tuple(peer(i) for i in range(others + 1))))

    def feed(self, event: GossipEvent) -> list[GossipEffect]:
        return self.take(self.core.handle(event))

    def take(self, effects: Sequence[GossipEffect]) -> list[GossipEffect]:
        self.log.extend(effects)
        return list(effects)

    def wanted(self, kind: type[EffectT]) -> list[EffectT]:
        """Everything of this kind so far; forgets it all."""
        found: list[EffectT] = [effect for effect in self.log if isinstance(effect, kind)]
        self.log = [effect for effect in self.log if not isinstance(effect, kind)]
        return found

    def cycle(self, *, refused: tuple[PeerID, ...] = ()) -> list[AverageModels]:
        """Do one batch and whatever follows it, up to the next TrainBatch. Return the averages."""
        averages = []
        todo = list(self.feed(Trained(self.now_s, True)))
        while todo:
            effect = todo.pop(0)
            if isinstance(effect, TakeSnapshot):
                todo += self.feed(SnapshotTaken(self.now_s, effect.sequence, True))
            elif isinstance(effect, AverageModels):
                averages.append(effect)
                todo += self.feed(Averaged(self.now_s, effect.part, refused, True))
            elif isinstance(effect, TrainBatch):
                break
        return averages

    def arrive(
        self,
        sender: PeerID,
        *,
        epoch: int = 1,
        sequence: int = 1,
        part: int = 0,
        layout: bytes | None = None,
        elements: int | None = None,
        dtype_right: bool = True,
        finite: bool = True,
    ) -> Verdict:
        """Let a model come in; return what the core said to it."""
        self._handle += 1
        push = Push(epoch, sequence, part, layout or self.layout.digest, trained=1, averages=0)
        size = self.layout.part_elements[min(part, len(self.layout.part_elements) - 1)]
        event = ModelArrived(
            self.now_s, sender, push, self._handle,
            elements if elements is not None else size, dtype_right, finite,
        )  # fmt: skip
        effects = self.feed(event)
        answers = [effect for effect in effects if isinstance(effect, AnswerPush)]
        assert [answer.handle for answer in answers] == [self._handle]
        return answers[0].answer.verdict
