"""The exchange of gradients within a stage, all in one place: who can be had from, and what the gradients sum to.

Every member of a stage asks the same, so an answer is kept until something changes. With hundreds of replicas per stage
that is the difference between seconds and hours.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from protocols.ids import PeerID
from protocols.ledger.events import StartReduce
from protocols.ledger.view import Ballot

if TYPE_CHECKING:
    from tests.sim.pipeline.world import PipelineWorld

Gradient: TypeAlias = Counter[int]
"""How often each microbatch was added."""
_Asked: TypeAlias = tuple[int, Ballot, tuple[PeerID, ...]]
_KEPT_MAX = 256
"""More than the stages of any swarm that is simulated."""


@dataclass(slots=True)
class _Sum:
    content: Gradient
    digest: bytes
    of_all: int = 0
    """How often any gradient had changed by then: as often, and nothing has to be looked at."""
    of_contributors: int = 0


def digest_of(content: Gradient) -> bytes:
    """Hash a reduced gradient, as the real one's bytes are."""
    return hashlib.sha256(repr(sorted(content.items())).encode()).digest()


class Exchanges:
    """All reductions of a world."""

    def __init__(self, world: PipelineWorld) -> None:
        self._world = world
        self._complete: set[_Asked] = set()
        self._missing: dict[tuple[PeerID, ...], PeerID] = {}
        """Of these contributors, the one that was missing last: most often it still is."""
        self._sums: dict[_Asked, _Sum] = {}
        self.gradient_changes = 0
        """How often any gradient became another one than before."""

    def changed(self) -> None:
        """What somebody reduces is another thing than before; or a peer came, went or was stopped."""
        self._complete.clear()
        if len(self._missing) > _KEPT_MAX:
            self._missing.clear()

    def missing(self, asker: PeerID, asked: StartReduce) -> PeerID | None:
        """Name the first contributor whose gradient `asker` cannot have now; None when it can have them all."""
        network = self._world.network
        same_for_all = not network.cuts
        key = (asked.index, asked.ballot, asked.contributors)
        if same_for_all and key in self._complete:
            return None
        looked_at = self._missing.get(asked.contributors)
        if looked_at is not None and not self._gives(looked_at, asker, asked):
            return looked_at
        for peer_id in asked.contributors:
            if not self._gives(peer_id, asker, asked):
                self._missing[asked.contributors] = peer_id
                return peer_id
        self._missing.pop(asked.contributors, None)
        if same_for_all:
            self._complete.add(key)
        return None

    def _gives(self, peer_id: PeerID, asker: PeerID, asked: StartReduce) -> bool:
        if peer_id == asker:
            return True
        peer = self._world.peers[peer_id]
        offers = not peer.stopped and peer.stage.offers(asked.index, asked.ballot)
        return offers and self._world.network.reaches(peer_id, asker)

    def sum(self, asked: StartReduce) -> tuple[Gradient, bytes]:
        """Add up the contributors' gradients as they are by now, and hash the sum. Nobody may change it."""
        key = (asked.index, asked.ballot, asked.contributors)
        found = self._sums.get(key)
        if found is not None and found.of_all == self.gradient_changes:
            return found.content, found.digest
        stages = [self._world.peers[contributor].stage for contributor in asked.contributors]
        changes = sum(stage.gradient_changes for stage in stages)
        if found is None or found.of_contributors != changes:
            content: Gradient = Counter()
            for stage in stages:
                content.update(stage.gradient)
            found = self._sums[key] = _Sum(content, digest_of(content))
            if len(self._sums) > _KEPT_MAX:
                del self._sums[next(iter(self._sums))]
        found.of_all, found.of_contributors = self.gradient_changes, changes
        return found.content, found.digest
