"""The smallest mode that the engine can run: peers tell each other the largest number that they have heard of.

It shows what a mode has to say, and that what the engine promises to a mode holds: cores are woken when they wish to be,
checkers see what they ask for, a mistake in the core is caught, and a seed is a trace.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest

from protocols.core import ContactsFound, Received, Send, Tick
from protocols.ids import PeerID
from tests.sim.engine.checker import Checker, Progress, ViolationError, on
from tests.sim.engine.faults import Faults
from tests.sim.engine.peer import SimPeer
from tests.sim.engine.runner import run_seed
from tests.sim.engine.subject import Subject
from tests.sim.engine.world import World

pytestmark = pytest.mark.sim


class Largest:
    """The core: tells all contacts once a second what it knows."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wake_at_s = 0.0
        self._contacts: tuple[PeerID, ...] = ()

    def start(self, now_s: float) -> Sequence[Send]:
        self.wake_at_s = now_s + 1.0
        return []

    def handle(self, event: Any) -> Sequence[Send]:
        match event:
            case ContactsFound():
                self._contacts = event.peers
            case Received():
                self.number = self.larger(event.message)
            case Tick() if event.now_s >= self.wake_at_s:
                self.wake_at_s = event.now_s + 1.0
                return [Send(peer, self.number) for peer in self._contacts]
        return []

    def larger(self, number: int) -> int:
        return max(self.number, number)


class LargestPeer(SimPeer):
    def boot(self, saved: int | None) -> None:
        self.core = Largest(self.rng.randrange(10**6) if saved is None else saved)
        self.begin(self.core)

    def saved(self) -> int:
        return self.core.number

    def take(self, source: PeerID, message: int) -> None:
        self.drive(self.core, ContactsFound(self.now_s, self.world.directory.members()))
        self.drive(self.core, Received(self.now_s, source, message))

    def leave_in_order(self) -> None:
        self.gone()


class LargestWorld(World[LargestPeer]):
    unit = "peers"

    def make_peer(self, peer_id: PeerID, index: int | None) -> LargestPeer:
        return LargestPeer(self, peer_id)

    @property
    def progress(self) -> int:
        numbers = [peer.core.number for peer in self.peers.values() if peer.up]
        return numbers.count(max(numbers, default=0))

    def expected(self) -> int:
        return sum(peer.up for peer in self.peers.values())

    def lost(self) -> str | None:
        return None

    def begin(self) -> None:
        super().begin()
        self._greet()

    def _greet(self) -> None:
        """Whoever is up hears of its number again, and looks for others then."""
        for peer in self.peers.values():
            if peer.up and not peer.stopped:
                peer.take(peer.peer_id, peer.core.number)
        self.clock.after(5.0, self._greet)


class NeverLess(Checker):
    """Remembers the largest number that each life has told."""

    promise = "never less"

    def __init__(self, world: World[Any]) -> None:
        super().__init__(world)
        self._told: dict[tuple[PeerID, int], int] = {}

    @on(int)
    def tells(self, peer: LargestPeer, number: int) -> None:
        life = (peer.peer_id, peer.life)
        if number < self._told.get(life, number):
            raise self.broken(f"{peer.name} told {self._told[life]} and now {number}")
        self._told[life] = number


class AllKnow(Progress):
    promise = "all know"


def draw(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ()
) -> LargestWorld:
    world = LargestWorld(
        seed, Faults.draw(seed), scale=1.0, delay_s=0.01, announce_s=5.0, detailed=detailed,
        checkers=checkers,
    )  # fmt: skip
    world.populate(random.Random(seed).randint(2, 8))
    return world


SUBJECT = Subject(
    mode="largest", unit="peers", draw=draw, faults=Faults, checkers=(NeverLess, AllKnow),
    safety_s=30.0, liveness_s=60.0,
)  # fmt: skip


def _run_all() -> list[World[Any]]:
    return [run_seed(SUBJECT, seed) for seed in range(20)]


def test_the_smallest_mode_keeps_its_promises() -> None:
    worlds = _run_all()
    assert all(world.handled for world in worlds)
    kinds = {kind for world in worlds for kind in world.faults.kinds()}
    assert kinds == set(Faults.names())


def test_a_mistake_is_caught_by_the_checker_that_watches_for_it() -> None:
    with (
        mock.patch.object(Largest, "larger", lambda self, number: number),
        pytest.raises(ViolationError, match="never less"),
    ):
        _run_all()


def test_a_healed_run_that_does_not_come_as_far_as_is_expected_is_caught() -> None:
    with (
        mock.patch.object(Largest, "larger", lambda self, number: self.number),
        pytest.raises(ViolationError, match="all know: stuck at 1 peers"),
    ):
        run_seed(SUBJECT, 0)


def test_a_seed_is_a_trace() -> None:
    first, second = (run_seed(SUBJECT, 3, detailed=True).trace for _ in range(2))
    assert first == second
    assert any(" > peer" in line for line in first)


def test_links_that_flap_when_the_run_heals_are_cut_no_more() -> None:
    faults = Faults(flapping_partitions=4)
    world = LargestWorld(
        0, faults, scale=1.0, delay_s=0.01, announce_s=5.0, detailed=False, checkers=()
    )
    world.populate(4)
    cuts_s: list[float] = []

    def cut(links: object) -> None:
        cuts_s.append(world.clock.now_s)

    with mock.patch.object(world.network, "cut", cut):
        world.run(safety_s=5.0, liveness_s=60.0)
    assert cuts_s
    assert max(cuts_s) <= 5.0
