"""A moe run: nodes that host experts, trainers that search and call them, and whether each expert has one host in the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from protocols.experts.uid import ExpertUID, Grid
from protocols.ids import PeerID
from tests.sim.engine.checker import Checker
from tests.sim.engine.world import World
from tests.sim.moe.checkers import ALL
from tests.sim.moe.faults import MoeFaults, MoeInjector
from tests.sim.moe.peer import MoePeer
from tests.sim.moe.records import Record, Records

_CHECK_S: Final = 1.0
SETTLE_S: Final = 30.0
"""Checkers watch the healed run for so long at least."""
_LONG_S: Final = 210.0
"""And so long, in some runs that have replicas: those outlive their hosts by minutes."""
_LONG: Final = 0.2
_SLOW_LOOK_S: Final = 12.0
_POPULAR: Final = 0.1


class MoeWorld(World[MoePeer]):
    """A world whose nodes host experts and train with them.

    Args:
      grids: of the layers.
      room: experts that each node is willing to host.
      trainers: share of the nodes that send batches.
      beam: of their searches.
      announced_s: how long the directory names a host that went silently.
    """

    unit = "experts"
    faults: MoeFaults

    def __init__(
        self,
        seed: int,
        grids: Sequence[Grid],
        peer_count: int,
        faults: MoeFaults,
        *,
        room: int = 99,
        keepers: int = 1,
        nodes_to_start: int = 1,
        trainers: float = 0.7,
        beam: int = 8,
        scale: float = 1.0,
        delay_s: float = 0.01,
        batch_s: float = 1.0,
        announced_s: float = 20.0,
        snapshot_every_s: float = 5.0,
        checkpoint_s: float = 5.0,
        staleness_max: int = 8,
        replicas: int = 0,
        detailed: bool = False,
        checkers: Sequence[type[Checker]] = ALL,
    ) -> None:
        super().__init__(
            seed,
            faults,
            scale=scale,
            delay_s=delay_s,
            announce_s=announced_s,
            detailed=detailed,
            checkers=checkers,
        )
        self.grids = self.watched = tuple(grids)
        self.uids: tuple[ExpertUID, ...] = tuple(uid for grid in grids for uid in grid.uids())
        self.room, self.keepers, self.nodes_to_start = room, keepers, nodes_to_start
        self.trainers, self.beam = trainers, beam
        self.snapshot_every_s = snapshot_every_s
        self.checkpoint_s = checkpoint_s * scale
        self.staleness_max = staleness_max
        self.replicas = replicas
        long = replicas and random.Random(f"long/{seed}").random() < _LONG
        self.settle_s = _LONG_S if long else SETTLE_S
        self.batch_s = batch_s * scale
        self.step_s, self.build_s, self.fetch_s = 0.05 * scale, 0.2 * scale, 0.2 * scale
        self.ask_s, self.probe_s, self.keep_s = 5.0 * scale, 3.0 * scale, 8.0 * scale
        self.drain_s = 30.0 * scale
        self.busy, self.slow_looks = faults.busy, faults.slow_looks
        self.records = Records(self, lifetime_s=announced_s, stale=faults.stale_directory)
        self._look_rng = random.Random(f"looks/{seed}")
        self.populate(peer_count)

    def make_peer(self, peer_id: PeerID, index: int | None) -> MoePeer:
        trains = index == 0 or self.rng.random() < self.trainers
        room = 0 if index is not None and index > 2 and self.rng.random() < 0.1 else self.room
        return MoePeer(self, peer_id, room=room, trains=trains)

    def look_up_s(self) -> float:
        """Return what a look into the directory takes: a few messages there and back, some of them slow."""
        rng = self._look_rng
        if self.slow_looks and rng.random() < self.slow_looks:
            return self.scaled(_SLOW_LOOK_S) * rng.random()
        return sum(self.network.delay_s() for _ in range(rng.randint(2, 6)))

    def share_of_time(self, uid: ExpertUID) -> float:
        """Return how much of its host's time an expert takes; who is popular changes every minute or so."""
        minute = int(self.clock.now_s / self.scaled(60.0))
        drawn = random.Random(f"popular/{self.seed}/{uid}/{minute}").random()
        return 0.9 if drawn < _POPULAR else 0.35 if drawn < 2 * _POPULAR else 0.05

    def first_of(self, records: list[Record]) -> list[Record]:
        """Return what the first node that answers holds of them: not always all."""
        return self._look_rng.sample(records, self._look_rng.randint(0, len(records)))

    def plan_faults(self, until_s: float) -> None:
        MoeInjector(self, until_s).plan()

    def mend(self) -> None:
        self.busy = self.slow_looks = 0.0
        self.records.heal()
        for peer in self.peers.values():
            peer.lies = None
        self._check()

    def _check(self) -> None:
        if self.healed_for_s >= self.settle_s:
            self.advanced()
        self.clock.after(_CHECK_S, self._check)

    def described(self) -> str:
        return (
            f"grids: {self.grids}, room: {self.room}, keepers: {self.keepers}, start: {self.nodes_to_start}, "
            f"snapshots: {self.snapshot_every_s} s, announced: {self.records.lifetime_s} s"
        )

    # --- what a healed run shall reach ---

    def hosts(self) -> dict[ExpertUID, list[MoePeer]]:
        """Return where each expert runs now."""
        found: dict[ExpertUID, list[MoePeer]] = {uid: [] for uid in self.uids}
        for peer in self.peers.values():
            for uid in peer.experts:
                found[uid].append(peer)
        return found

    @property
    def staying(self) -> list[MoePeer]:
        return [peer for peer in self.peers.values() if peer.up and not peer.draining]

    def expected(self) -> int:
        """Every expert has one host, which all name; as many as there is room for."""
        return min(len(self.uids), sum(peer.room for peer in self.staying))

    @property
    def progress(self) -> int:
        return sum(self._settled(uid, hosts) for uid, hosts in self.hosts().items())

    def _settled(self, uid: ExpertUID, hosts: Sequence[MoePeer]) -> bool:
        if len(hosts) != 1:
            return False
        (host,) = hosts
        for peer in self.staying:
            claims = peer.view.hosts(uid, peer.now_s)
            if not claims or claims[0].peer != host.peer_id:
                return False
        return True

    def lost(self) -> str | None:
        """Say that nobody is left to host, or too few to begin with."""
        hosting = [peer for peer in self.staying if peer.room]
        if not hosting:
            return "all hosts"
        if len(hosting) < self.nodes_to_start and not any(peer.core._begun for peer in hosting):
            return "too many nodes to begin"
        if self.goal > sum(peer.room for peer in self.staying):
            return "room"
        return None


def draw_world(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ALL
) -> MoeWorld:
    """Draw sizes, pace and faults of the standard mix."""
    rng = random.Random(f"options/{seed}")
    sizes = rng.choice(((4,), (3, 3), (2, 4), (4, 3), (2, 2, 3), (3, 3, 2)))
    layers = rng.choice((1, 1, 2))
    grids = [Grid(f"ffn{index}", sizes) for index in range(layers)]
    count = rng.randint(3, 9)
    experts = layers * len(grids[0])
    tight = -(-experts // max(2, count - 2))
    return MoeWorld(
        seed,
        grids,
        count,
        MoeFaults.draw(seed),
        room=rng.choice((99, 99, 2 * tight, tight)),
        keepers=rng.choice((1, 1, 2)),
        nodes_to_start=rng.choice((1, 2, max(2, count // 2))),
        trainers=rng.choice((0.4, 0.7, 1.0)),
        scale=rng.choice((1.0, 1.0, 2.0)),
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.15)),
        batch_s=rng.choice((0.5, 1.0, 2.0)),
        announced_s=rng.choice((10.0, 20.0, 40.0)),
        snapshot_every_s=rng.choice((2.0, 5.0, 10.0)),
        checkpoint_s=random.Random(f"disk/{seed}").choice((2.0, 10.0, 30.0)),
        staleness_max=rng.choice((4, 64)),
        beam=rng.choice((3, 8)),
        replicas=rng.choice((0, 0, 1, 2)),
        detailed=detailed,
        checkers=checkers,
    )
