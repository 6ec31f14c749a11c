"""A gossip run: peers with whole models of their own, and whose training has reached whom since the faults ended."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from protocols.gossip.pushes import ModelLayout
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from tests.sim.engine.checker import Checker
from tests.sim.engine.world import World
from tests.sim.gossip.checkers import ALL
from tests.sim.gossip.faults import GossipFaults, GossipInjector
from tests.sim.gossip.peer import GossipPeer

_ELEMENTS: Final = 1000


class GossipWorld(World[GossipPeer]):
    """A world whose peers average their models.

    Args:
      batch_s: what a batch takes, of the standard run, on an average peer.
      look_s: between two looks into the directory.
      deadline_s: of a push, of the standard run.
      steps: batches that each peer trains; None: without end.
    """

    unit = "pairs"
    faults: GossipFaults

    def __init__(
        self,
        seed: int,
        spec: GossipSpec,
        peer_count: int,
        faults: GossipFaults,
        *,
        steps: int | None = None,
        scale: float = 1.0,
        delay_s: float = 0.01,
        batch_s: float = 1.0,
        announce_s: float = 20.0,
        look_s: float = 5.0,
        deadline_s: float = 6.0,
        detailed: bool = False,
        checkers: Sequence[type[Checker]] = ALL,
    ) -> None:
        super().__init__(
            seed,
            faults,
            scale=scale,
            delay_s=delay_s,
            announce_s=announce_s,
            detailed=detailed,
            checkers=checkers,
        )
        self.spec = spec
        self.steps = steps
        self.layout = ModelLayout(
            digest=b"l" * 32,
            part_elements=tuple(_ELEMENTS + part for part in range(spec.parts)),
        )
        self.batch_s = batch_s * scale
        self.look_s = look_s
        self.deadline_s = deadline_s * scale
        self.divergence, self.diverged_averages = faults.divergence, faults.diverged_averages
        self.odd_variances, self.busy = faults.odd_variances, faults.busy
        self.failed_fetches = faults.failed_fetches
        self._staying: list[GossipPeer] = []
        self.populate(peer_count)

    def make_peer(self, peer_id: PeerID, index: int | None) -> GossipPeer:
        return GossipPeer(self, peer_id, founder=index == 0)

    def plan_faults(self, until_s: float) -> None:
        GossipInjector(self, until_s).plan()

    def mend(self) -> None:
        self.divergence = self.diverged_averages = self.odd_variances = 0.0
        self.busy = self.failed_fetches = 0.0
        for peer in self.peers.values():
            peer.lies = None

    def described(self) -> str:
        return f"spec: {self.spec}, steps: {self.steps}, batch: {self.batch_s} s"

    # --- what a healed run shall reach ---

    def expected(self) -> int:
        """Everybody's training since now reaches everybody, in every part. Whoever has lied may go unheard."""
        self._staying = [peer for peer in self.peers.values() if peer.up and not peer.draining]
        return len(self._pairs())

    def _pairs(self) -> list[tuple[GossipPeer, GossipPeer]]:
        return [
            (here, there)
            for here in self._staying
            for there in self._staying
            if here is not there and there.peer_id not in self.liars
        ]

    @property
    def progress(self) -> int:
        healed_s = self.healed_s
        if healed_s is None:
            return 0
        return sum(
            _is_out(here) or _is_out(there) or _has_reached(there, here, healed_s)
            for here, there in self._pairs()
        )

    def lost(self) -> str | None:
        """Say that nobody is left to exchange models with, or to begin with."""
        staying = [peer for peer in self.peers.values() if peer.up and not peer.draining]
        if len(staying) < 2:
            return "all peers but one"
        begun = all(peer.core.standing.trained for peer in staying)
        if not begun and len(staying) <= self.spec.neighbours_to_start:
            return "too many peers to begin"
        return None


def _is_out(peer: GossipPeer) -> bool:
    """Tell whether it has trained all its batches, or left since then: nothing is to be expected of it."""
    return not peer.up or peer.draining or peer.core.finished


def _has_reached(source: GossipPeer, target: GossipPeer, since_s: float) -> bool:
    return all(part.trained_s.get(source.peer_id, -1.0) > since_s for part in target.model)


def draw_world(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ALL
) -> GossipWorld:
    """Draw sizes, pace and faults of the standard mix."""
    rng = random.Random(f"options/{seed}")
    spec = GossipSpec(
        neighbours=rng.choice(("random", "random", "ring", "exponential", "full")),
        degree=rng.choice((2, 4, 4, 6)),
        batches=rng.choice((1, 2, 4)),
        buffer_share=rng.choice((0.3, 0.7, 1.0)),
        average_after_batches=rng.choice((2, 4, 8)),
        push_share=rng.choice((1.0, 1.0, 0.5, 0.25)),
        independent_averages=rng.choice((0, 2, 4)),
        batch_every_s=rng.choice((0.0, 0.0, 0.0, 1.5)),
        neighbours_to_start=rng.choice((0, 0, 1, 2)),
    )
    return GossipWorld(
        seed,
        spec,
        rng.randint(3, 12),
        GossipFaults.draw(seed),
        steps=rng.choice((60, *(None,) * 7)),
        scale=rng.choice((1.0, 1.0, 4.0)),
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.15)),
        batch_s=rng.choice((0.5, 1.0, 2.0)),
        announce_s=rng.choice((5.0, 20.0, 60.0)),
        look_s=rng.choice((2.0, 5.0, 15.0)),
        detailed=detailed,
        checkers=checkers,
    )
