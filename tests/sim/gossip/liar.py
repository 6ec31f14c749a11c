"""Who sends what must be refused: strangers that are no peers of the run, and neighbours that lie.

A lying neighbour trains and pushes honestly, too: beside that it pushes, in its own name, models that break a rule each, and
gives answers that are not so. Models that are merely bad are the arithmetic's to refuse (swarm.gossip), not the core's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protocols.gossip.messages import Leaving, OfferWanted, Push, Verdict
from protocols.ids import PeerID
from tests.sim.gossip.model import Part
from tests.sim.gossip.peer import Body

if TYPE_CHECKING:
    from tests.sim.gossip.peer import GossipPeer
    from tests.sim.gossip.world import GossipWorld

_HUGE: Final = 2**62
_FLOOD: Final = 24
_ANSWERS: Final[tuple[Verdict, ...]] = (
    "taken", "unknown", "no-neighbour", "old", "too-often", "finished", "draining",
)  # fmt: skip


class Stranger:
    """Authenticated, but the directory does not name it."""

    def __init__(self, world: GossipWorld, number: int) -> None:
        self.peer_id = PeerID(b"liar%04d" % number)
        self._world = world
        self._rng = random.Random(f"stranger/{world.seed}/{number}")

    def start(self, until_s: float) -> None:
        """Push until the world heals."""
        self._until_s = until_s
        self._world.liars.add(self.peer_id)
        self._push()

    def _push(self) -> None:
        world, rng = self._world, self._rng
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(0.5 * rng.random()), self._push)
        victim = rng.choice(list(world.peers.values()))
        if not victim.up or victim.stopped:
            return
        if rng.random() < 0.2:
            world.forge(self.peer_id, victim.peer_id, rng.choice((Leaving(), OfferWanted())))
            return
        push = Push(rng.choice((0, 1, _HUGE)), rng.choice((1, _HUGE)), 0, world.layout.digest, 1, 1)
        victim.take_push(self.peer_id, push, Body(Part({}), world.layout.part_elements[0]))


class LyingNeighbour:
    """A peer of the run with an honest core, and what goes out beside it."""

    def __init__(self, world: GossipWorld, peer: GossipPeer) -> None:
        self._world = world
        self._peer = peer
        self._rng = random.Random(f"lying neighbour/{world.seed}/{peer.name}")

    def start(self, until_s: float) -> None:
        """Lie until the world heals."""
        self._until_s = until_s
        self._world.log(f"{self._peer.name} lies")
        self._world.liars.add(self._peer.peer_id)
        self._peer.lies = self
        self._lie()

    def verdict(self, true: Verdict) -> Verdict:
        """Answer another one's push."""
        return self._rng.choice(_ANSWERS) if self._rng.random() < 0.3 else true

    def _lie(self) -> None:
        world, rng, me = self._world, self._rng, self._peer
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(rng.random()), self._lie)
        others = [peer for peer in world.peers.values() if peer is not me and peer.up]
        if not me.up or me.stopped or not others:
            return
        victim = rng.choice(others)
        if victim.stopped or not world.network.reaches(me.peer_id, victim.peer_id):
            return
        rng.choice(self._lies(victim))()

    def _lies(self, victim: GossipPeer) -> list[Callable[[], None]]:
        world, rng, me = self._world, self._rng, self._peer
        layout, parts = world.layout, len(world.layout.part_elements)
        part = rng.randrange(parts)
        right, size = Part({me.peer_id: 0.0}), layout.part_elements[part]

        def push(
            body: Body, *, digest: bytes = layout.digest, at: int = part, sequence: int = 1
        ) -> None:
            standing = me.core.standing
            message = Push(
                standing.epoch, standing.sequence + sequence, at, digest, 1, rng.choice((0, _HUGE))
            )
            victim.take_push(me.peer_id, message, body)

        def flood() -> None:
            for sequence in range(1, _FLOOD):
                push(Body(right, size), sequence=sequence)

        return [
            lambda: push(Body(right, size), digest=b"x" * 32),
            lambda: push(Body(right, size), at=parts + rng.randrange(99 - parts)),
            lambda: push(Body(right, rng.choice((0, size - 1, size + 1, 10**9)))),
            lambda: push(Body(right, size, dtype_right=False)),
            lambda: push(Body(Part({}, finite=False), size)),
            lambda: push(Body(right, size), sequence=0),
            lambda: push(Body(right, size), sequence=-1),
            flood,
            lambda: world.forge(me.peer_id, victim.peer_id, OfferWanted()),
            lambda: world.forge(me.peer_id, victim.peer_id, Leaving()),
        ]
