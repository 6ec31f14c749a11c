"""Our pushes: one on its way to each neighbour, and one owed, which will be of the newest snapshot then.

So a slow neighbour gets fewer models; nothing is stored for it, and it holds up nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocols.gossip.events import PushModel
from protocols.gossip.messages import Push, PushAnswer
from protocols.gossip.neighbourhood import Neighbour, Neighbourhood
from protocols.ids import PeerID


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """What a model must look like, without its tensors."""

    digest: bytes
    """32 bytes: hash of names, shapes and dtypes, and of the cut in parts."""
    part_elements: tuple[int, ...]
    """Numbers in each part; as many as `GossipSpec.parts`, or fewer when the model has fewer tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far our model is; what pushes and offers say of it."""

    epoch: int
    sequence: int
    """Of the newest snapshot; rises, also from one epoch to the next."""
    trained: int
    averages: int


class Pushes:
    """Which pushes are on their way, and which are owed."""

    def __init__(self, neighbourhood: Neighbourhood, layout: ModelLayout) -> None:
        self._neighbourhood = neighbourhood
        self._layout = layout
        self._calls: dict[int, PeerID] = {}
        self._called: set[PeerID] = set()
        """Who has a push on its way; also those that are no neighbours any more."""
        self._next_call = 0

    @property
    def on_the_way(self) -> int:
        return len(self._calls)

    @property
    def wake_at_s(self) -> float:
        """When a push that is owed may be sent; in the past when one is due."""
        return min((neighbour.not_before_s for _, neighbour in self._owed()), default=math.inf)

    def owe_all(self) -> None:
        """Note that there is a new snapshot."""
        for neighbour in self._neighbourhood.current.values():
            neighbour.owed = not neighbour.finished

    def due(self, now_s: float, standing: Standing) -> list[PushModel]:
        """Send the newest snapshot to those who are owed one."""
        return [
            self._push(peer, neighbour, standing)
            for peer, neighbour in self._owed()
            if now_s >= neighbour.not_before_s
        ]

    def answered(self, now_s: float, call: int, answer: PushAnswer) -> bool:
        """Take an answer. Returns whether it belongs to a push that was on its way."""
        peer = self._end(call)
        if peer is None:
            return False
        if answer.verdict == "draining":
            self._neighbourhood.gone(now_s, peer)
        else:
            self._neighbourhood.heard(now_s, peer)
        neighbour = self._neighbourhood.current.get(peer)
        if neighbour is not None:
            neighbour.sent += answer.verdict == "taken"
            neighbour.finished = answer.verdict == "finished"
            if answer.verdict in ("unknown", "no-neighbour", "too-often"):
                self._neighbourhood.refused(now_s, peer)
        return True

    def failed(self, now_s: float, call: int, *, busy: bool) -> bool:
        """Take a failure. Returns whether it belongs to a push that was on its way."""
        peer = self._end(call)
        if peer is None:
            return False
        if busy:
            self._neighbourhood.heard(now_s, peer)
        else:
            self._neighbourhood.failed(now_s, peer)
        return True

    def _owed(self) -> list[tuple[PeerID, Neighbour]]:
        return [
            (peer, neighbour)
            for peer, neighbour in self._neighbourhood.current.items()
            if neighbour.owed and peer not in self._called
        ]

    def _push(self, peer: PeerID, neighbour: Neighbour, standing: Standing) -> PushModel:
        call = self._next_call
        self._next_call += 1
        self._calls[call] = peer
        self._called.add(peer)
        neighbour.owed = False
        parts = len(self._layout.part_elements)
        part = neighbour.part % parts
        neighbour.part = (part + 1) % parts
        push = Push(
            epoch=standing.epoch,
            sequence=standing.sequence,
            part=part,
            layout=self._layout.digest,
            trained=standing.trained,
            averages=standing.averages,
        )
        return PushModel(call, peer, push)

    def _end(self, call: int) -> PeerID | None:
        peer = self._calls.pop(call, None)
        if peer is not None:
            self._called.discard(peer)
        return peer
