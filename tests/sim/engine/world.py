"""One simulated run: peers, network, directory, topic, faults from the seed, and every checker watching.

A mode derives from `World`: how a peer is made, what the run has reached, what it shall reach once faults end, and what the
faults have taken for good.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

from protocols.ids import PeerID
from tests.sim.engine.checker import Checker, Watch
from tests.sim.engine.clock import Clock
from tests.sim.engine.directory import SimDirectory
from tests.sim.engine.faults import Faults, Injector
from tests.sim.engine.network import Network, Weather
from tests.sim.engine.peer import SimPeer
from tests.sim.engine.topic import SimTopic

PeerT = TypeVar("PeerT", bound=SimPeer)
_LOOK_S: Final = 5.0


class World(ABC, Generic[PeerT]):
    """Everything in one run, replayable from `seed`.

    Args:
      scale: seconds of this run per second of the standard one; deadlines, computing and faults stretch alike.
      delay_s: what a message takes on average; it does not stretch.
      announce_s: how often who takes part says so in the directory.
      detailed: trace every message, not only what a mode logs and faults.
    """

    unit: ClassVar[str]
    """What is counted as progress."""

    def __init__(
        self,
        seed: int,
        faults: Faults,
        *,
        scale: float,
        delay_s: float,
        announce_s: float,
        detailed: bool,
        checkers: Sequence[type[Checker]],
    ) -> None:
        self.seed = seed
        self.faults = faults
        self.scale = scale
        self.detailed = detailed
        self.clock = Clock()
        self.rng = random.Random(f"world/{seed}")
        weather = Weather(delay_s, faults.loss, faults.repeat, faults.reordering, faults.heavy_tail)
        self.network = Network(self.clock, random.Random(f"network/{seed}"), weather)
        self.directory = SimDirectory(self, announce_s=announce_s, stale=faults.stale_directory)
        self.topic = SimTopic(
            self,
            random.Random(f"topic/{seed}"),
            loss=faults.topic_loss,
            repeats=faults.topic_repeats,
        )
        self.trace: list[str] = []
        self.handled = 0
        """Events that the cores have taken."""
        self.liars: set[PeerID] = set()
        """Strangers and members that lie, or once did."""
        self.goal = 0
        """The progress that the run shall reach; after healing the clock stops there."""
        self.healed_s: float | None = None
        self.peers: dict[PeerID, PeerT] = {}
        self.watch = Watch([checker(self) for checker in checkers])

    # --- what a mode says ---

    @abstractmethod
    def make_peer(self, peer_id: PeerID, index: int | None) -> PeerT:
        """Make a peer; `index` counts those that are there from the beginning, None comes later."""

    @property
    @abstractmethod
    def progress(self) -> int:
        """How far the run has come, in `unit`."""

    @abstractmethod
    def expected(self) -> int:
        """Return what progress a run that is healed now shall reach in time."""

    @abstractmethod
    def lost(self) -> str | None:
        """Say what the faults took for good, so that the run rightly waits. None: nothing."""

    def changed(self, peer: PeerT) -> None:
        """A peer died, was stopped, or goes on."""

    def connected_to(self, peer: PeerT) -> list[PeerT]:
        """Who notices at once when this peer dies."""
        return [other for other in self.peers.values() if other.up and other is not peer]

    def plan_faults(self, until_s: float) -> None:
        """Put every drawn fault at its time."""
        Injector(self, until_s).plan()

    def mend(self) -> None:
        """End the faults that only this mode knows."""

    def described(self) -> str:
        """Say which sizes and settings were drawn."""
        return ""

    # --- what peers use ---

    def log(self, text: str) -> None:
        self.trace.append(f"{self.clock.now_s:10.3f} {text}")

    def scaled(self, seconds: float) -> float:
        return seconds * self.scale

    def cast(self, source: PeerT, target_id: PeerID, message: Any) -> None:
        """Cast a message that a core sends."""
        self.watch.see(source, message)
        self.forge(source.peer_id, target_id, message)

    def forge(self, source_id: PeerID, target_id: PeerID, message: Any) -> None:
        """Cast a message in somebody's name; no checker sees it."""
        target = self.peers.get(target_id)
        if target is not None:  # a stranger that made itself known gets nothing
            self.network.cast(source_id, target_id, target.receive, source_id, message)

    def received(self, peer: PeerT, source: PeerID, message: Any) -> None:
        if self.detailed:
            self.log(f"{source.decode()} > {peer.name} {message}")

    def advanced(self) -> None:
        """The mode has made progress: after healing, end when it is enough."""
        if self.healed_s is not None and self.progress >= self.goal:
            self.clock.stopped = True

    @property
    def healed_for_s(self) -> float:
        return self.clock.now_s - self.healed_s if self.healed_s is not None else 0.0

    # --- the run ---

    def populate(self, count: int) -> None:
        """Make the peers that are there from the beginning, in an order of the seed's."""
        ids = [PeerID(b"peer%04d" % index) for index in range(count)]
        self.rng.shuffle(ids)
        for index, peer_id in enumerate(ids):
            self.peers[peer_id] = self.make_peer(peer_id, index)

    def add_peer(self) -> None:
        """A volunteer comes along."""
        peer_id = PeerID(b"peer%04d" % len(self.peers))
        peer = self.peers[peer_id] = self.make_peer(peer_id, None)
        self.log(f"join {peer.name}")
        peer.start()

    def begin(self) -> None:
        """Start all peers, and the looks at them."""
        for peer in list(self.peers.values()):
            peer.start()
        self._look()

    def _look(self) -> None:
        self.watch.looked()
        self.clock.after(self.scaled(_LOOK_S), self._look)

    def _heal(self) -> None:
        """End all faults: what is up stays up, what is cut is joined, what is stopped goes on."""
        self.log("heal")
        self.healed_s = self.clock.now_s
        self.network.heal()
        self.directory.heal()
        self.topic.heal()
        self.mend()
        for peer in self.peers.values():
            peer.go_on()

    def run(self, *, safety_s: float, liveness_s: float) -> None:
        """Safety under faults, then healing and what is expected of a healed run. Raises ViolationError."""
        self.begin()
        self.plan_faults(self.scaled(safety_s))
        self.clock.run_until(self.scaled(safety_s))
        self._heal()
        self.goal = self.expected()
        self.clock.run_until(self.scaled(safety_s + liveness_s))
        self.watch.looked()
        self.watch.ended()
