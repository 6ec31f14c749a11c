"""A checker of a moe run, and what several of them must know: which copies of experts there have really been."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.engine import checker
from tests.sim.engine.checker import on
from tests.sim.moe.notes import ExpertStepped, HostingBegun, HostingEnded
from tests.sim.moe.state import State

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

Life: TypeAlias = tuple[PeerID, int]


class Checker(checker.Checker):
    """Watches one promise of a moe run."""

    world: MoeWorld

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)

    def up(self) -> Iterator[MoePeer]:
        return (peer for peer in self.world.peers.values() if peer.up)


@dataclass(slots=True)
class Tenure:
    """One copy of an expert, from when it began to take calls to its end."""

    host: PeerID
    life: int
    origin: State | None
    version: int
    ended_s: float | None = None


class TenureChecker(Checker):
    """Remembers every copy, by expert and epoch."""

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self.tenures: dict[ExpertUID, dict[int, Tenure]] = {}

    @on(HostingBegun)
    def begins(self, peer: MoePeer, note: HostingBegun) -> None:
        of = self.tenures.setdefault(note.uid, {})
        if note.epoch in of:
            self.again(peer, note, of[note.epoch])
        version = note.origin.version if note.origin is not None else 0
        of[note.epoch] = Tenure(peer.peer_id, peer.life, note.origin, version)

    @on(ExpertStepped)
    def steps(self, peer: MoePeer, note: ExpertStepped) -> None:
        self.tenures[note.uid][note.epoch].version = note.version

    @on(HostingEnded)
    def ends(self, peer: MoePeer, note: HostingEnded) -> None:
        tenure = self.tenures.get(note.uid, {}).get(note.epoch)
        if tenure is not None:
            tenure.ended_s = self.world.clock.now_s

    def again(self, peer: MoePeer, note: HostingBegun, before: Tenure) -> None:
        """An epoch is used a second time."""


def life_of(peer: MoePeer) -> Life:
    return peer.peer_id, peer.life
