"""How a peer gets its first model: from a neighbour, or independently when it is among the first.

Independent starts average well (that is what the variance correction is for), so they are also what is left when no
neighbour can give a model. A fetched model is refused when it is worse on a batch of ours than our own untrained one:
that shows a model of zeros, of noise, or turned around, and costs one batch.

| state | what happens |
|---|---|
| looking | no contacts yet: wait `CONTACTS_WAIT_S` for the first neighbour, then start independently |
| asking | up to `ASKED_MAX` neighbours say how often their model was averaged |
| fetching | one of those averaged often enough sends its model; whoever fails is not asked again |
| done | |
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Collection
from typing import Final

from protocols.gossip.events import (
    AdoptModel,
    AskOffer,
    DropModel,
    FetchModel,
    GossipEffect,
    ModelFetched,
)
from protocols.gossip.messages import Digest, ModelOffer
from protocols.ids import PeerID

ASKED_MAX: Final = 3
ROUNDS_MAX: Final = 3
"""Times that neighbours are asked before starting independently."""
CONTACTS_WAIT_S: Final = 15.0
ANSWERS_WAIT_S: Final = 10.0


class Newcomer:
    """The way to a first model. Ends with `done`; `independent` says how.

    Args:
      averages_wanted: a neighbour's model is a start when it has been averaged so often.
      insist: somebody's trained model is wanted, since our own has failed (non-finite again and again).
    """

    def __init__(
        self,
        now_s: float,
        *,
        layout: Digest,
        averages_wanted: int,
        rng: random.Random,
        insist: bool = False,
    ) -> None:
        self._layout = layout
        self._averages_wanted = 0 if insist else averages_wanted
        self._rng = rng
        self._asked: set[PeerID] = set()
        """Ever. Who failed us is not asked again."""
        self._waiting: set[PeerID] = set()
        self._offers: dict[PeerID, ModelOffer] = {}
        self._fetching: PeerID | None = None
        self._rounds = 0
        self.done = False
        self.independent = False
        self.adopted: tuple[PeerID, ModelOffer] | None = None
        """Whose model we have."""
        self.wake_at_s = now_s + CONTACTS_WAIT_S

    def tick(self, now_s: float, neighbours: Collection[PeerID]) -> list[GossipEffect]:
        """Go on: ask, choose, or give up waiting."""
        if self.done or self._fetching is not None:
            return []
        if now_s < self.wake_at_s and (self._waiting or not neighbours):
            return []
        if self._asked or self._offers:
            return self._choose(now_s, neighbours)
        return self._ask(now_s, neighbours)

    def alone(self) -> None:
        """Start independently: nobody else is there."""
        self.done = self.independent = True
        self.wake_at_s = math.inf

    def answered(
        self, now_s: float, peer: PeerID, offer: ModelOffer, neighbours: Collection[PeerID]
    ) -> list[GossipEffect]:
        """Take a neighbour's offer."""
        if self.done or peer not in self._waiting:
            return []
        self._waiting.discard(peer)
        self._offers[peer] = offer
        return self.tick(now_s, neighbours)

    def failed(
        self, now_s: float, peer: PeerID, neighbours: Collection[PeerID]
    ) -> list[GossipEffect]:
        """A neighbour did not answer, or its model did not come or is not what it signed."""
        self._waiting.discard(peer)
        self._offers.pop(peer, None)
        if self._fetching == peer:
            self._fetching = None
        return self.tick(now_s, neighbours)

    def fetched(self, event: ModelFetched, neighbours: Collection[PeerID]) -> list[GossipEffect]:
        """Adopt a neighbour's model, unless it is worse than none."""
        if self.done or self._fetching != event.peer:
            return [DropModel(event.handle)]
        if not event.finite or not event.loss <= event.own_loss:
            return [
                DropModel(event.handle),
                *self.failed(event.now_s, event.peer, neighbours),
            ]
        self.adopted = event.peer, self._offers[event.peer]
        self.done = True
        self.wake_at_s = math.inf
        return [AdoptModel(event.handle, self.trained)]

    @property
    def trained(self) -> int:
        """How many batches are behind the model that we adopt, as neighbours claim: the lower median of all that offered
        one, so that one liar among several cannot end our training before it began."""
        claims = [offer.trained for offer in self._offers.values() if offer.root]
        return statistics.median_low(claims) if claims else 0

    def _ask(self, now_s: float, neighbours: Collection[PeerID]) -> list[GossipEffect]:
        fresh = sorted(set(neighbours) - self._asked)
        if not fresh or self._rounds >= ROUNDS_MAX:
            self.alone()
            return []
        self._rounds += 1
        chosen = self._rng.sample(fresh, min(ASKED_MAX, len(fresh)))
        self._asked.update(chosen)
        self._waiting.update(chosen)
        self.wake_at_s = now_s + ANSWERS_WAIT_S
        return [AskOffer(peer) for peer in chosen]

    def _choose(self, now_s: float, neighbours: Collection[PeerID]) -> list[GossipEffect]:
        """Fetch from one of those whose model is worth it. Which one is drawn: counts are only claims."""
        self._waiting.clear()
        good = sorted(
            peer
            for peer, offer in self._offers.items()
            if offer.root
            and offer.layout == self._layout
            and offer.averages >= self._averages_wanted
        )
        if good:
            self._fetching = self._rng.choice(good)
            self.wake_at_s = math.inf  # the shell's deadline bounds it
            return [FetchModel(self._fetching, self._offers[self._fetching])]
        if self._offers:  # they answer, and are as new as we are
            self.alone()
            return []
        return self._ask(now_s, neighbours)
