"""A run of peers that average whole vectors in groups, and how many averages each has reached since the faults ended."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from protocols.averaging.messages import Have
from protocols.averaging.settings import AveragingSpec
from protocols.ids import PeerID
from tests.sim.averaging.checkers import ALL
from tests.sim.averaging.faults import AveragingFaults, AveragingInjector
from tests.sim.averaging.peer import AveragingPeer
from tests.sim.engine.checker import Checker
from tests.sim.engine.world import World

ROUNDS_HEALED: Final = 3
"""Averages that each peer shall reach once all faults are over."""


class AveragingWorld(World[AveragingPeer]):
    """A world whose peers average.

    Args:
      train_s: between two averages, of the standard run, on an average peer.
      look_s: between two looks into the directory.
    """

    unit = "averages"
    faults: AveragingFaults

    def __init__(
        self,
        seed: int,
        spec: AveragingSpec,
        peer_count: int,
        faults: AveragingFaults,
        *,
        keys: int = 1,
        scale: float = 1.0,
        delay_s: float = 0.01,
        train_s: float = 3.0,
        announce_s: float = 20.0,
        look_s: float = 5.0,
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
        self.keys = tuple(f"key{index}" for index in range(keys))
        self.train_s = train_s * scale
        self.look_s = look_s
        self.broken_pulls = faults.broken_pulls
        self.deaths_in_rounds = faults.deaths_in_rounds
        self._lost_haves = faults.lost_haves
        self._losing = random.Random(f"lost haves/{seed}")
        self._staying: list[AveragingPeer] = []
        self.populate(peer_count)

    def make_peer(self, peer_id: PeerID, index: int | None) -> AveragingPeer:
        return AveragingPeer(self, peer_id)

    def plan_faults(self, until_s: float) -> None:
        AveragingInjector(self, until_s).plan()

    def mend(self) -> None:
        self.broken_pulls = self._lost_haves = self.deaths_in_rounds = 0.0
        for peer in self.peers.values():
            peer.lies = None

    def forge(self, source_id: PeerID, target_id: PeerID, message: Any) -> None:
        lost = isinstance(message, Have) and self._losing.random() < self._lost_haves
        if not lost:
            super().forge(source_id, target_id, message)

    def described(self) -> str:
        return f"spec: {self.spec}, keys: {len(self.keys)}, training: {self.train_s} s"

    def expected(self) -> int:
        self._staying = [peer for peer in self.peers.values() if peer.up and not peer.draining]
        return ROUNDS_HEALED * len(self._staying)

    @property
    def progress(self) -> int:
        return sum(
            min(peer.finished_healed, ROUNDS_HEALED)
            if peer.up and not peer.draining
            else ROUNDS_HEALED
            for peer in self._staying
        )

    def lost(self) -> str | None:
        """Say that nobody is left to average with."""
        return "all peers but one" if sum(peer.up for peer in self.peers.values()) < 2 else None


def draw_world(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ALL
) -> AveragingWorld:
    """Draw sizes, pace and faults of the standard mix."""
    rng = random.Random(f"options/{seed}")
    scale = rng.choice((1.0, 1.0, 4.0))
    spec = AveragingSpec(
        group_max=rng.choice((2, 3, 4, 8, 16)),
        gather_floor_s=scale * rng.choice((0.2, 1.0)),
        gather_ceiling_s=scale * rng.choice((5.0, 15.0)),
        answer_s=scale * rng.choice((1.0, 2.0)),
        exchange_floor_s=scale * rng.choice((1.0, 3.0)),
        exchange_ceiling_s=scale * rng.choice((5.0, 10.0)),
    )
    return AveragingWorld(
        seed,
        spec,
        rng.randint(2, 9),
        AveragingFaults.draw(seed),
        keys=rng.choice((1, 1, 2)),
        scale=scale,
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.1)),
        train_s=rng.choice((0.5, 2.0, 5.0)),
        announce_s=rng.choice((5.0, 20.0, 60.0)),
        look_s=rng.choice((2.0, 5.0, 15.0)),
        detailed=detailed,
        checkers=checkers,
    )
