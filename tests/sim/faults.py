"""Which faults a run has, drawn from its seed, and how they are done to it.

A new fault:
  - a field of `Faults` (0 or False: absent), and its share in `draw`. Every field is drawn from a random source of its
    own, so a new one changes no seed's other faults;
  - if something happens at some time: a method of `Injector` that does it, planned with a `_source` of its own; if
    messages suffer: tests.sim.network's Weather; if a peer is another one than it should be: tests.sim.peer, or
    tests.sim.lying_member; if it is a stranger: tests.sim.liar;
  - its end in `World._heal`: a run must be able to go on then;
  - a planted fault in the cores (tests.sim.planted) that shows only where this one happens.

Most kinds are absent from about half of the runs, so rare combinations happen alone and together.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.contest import Contest
from tests.sim.forger import Forger
from tests.sim.liar import Liar, RogueTrainer
from tests.sim.lying_member import LyingMember
from tests.sim.network import Link

if TYPE_CHECKING:
    from tests.sim.peer import SimPeer
    from tests.sim.world import World

PREEMPTION_S = 10.0
"""Half of the peers go within this many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How much of each kind this run has. Times are in units of the run's time scale."""

    loss: float = 0.0
    repeat: float = 0.0
    reordering: float = 0.0
    heavy_tail: float = 0.0
    slow_peers: int = 0
    silent_peers: int = 0
    """Stopped, not dead: they go on later, with what they knew."""
    partitions: int = 0
    one_way_partitions: int = 0
    flapping_partitions: int = 0
    crashes: int = 0
    restarts_without_state: int = 0
    restarts_with_state: int = 0
    mass_preemption: bool = False
    shutdown: bool = False
    """All that are there at the beginning are told to leave within ten seconds."""
    joins: int = 0
    leaves: int = 0
    observers: int = 0
    """Peers that only train."""
    stale_directory: bool = False
    unavailable_directory: bool = False
    clock_skew: bool = False
    """Each peer's clock has its own zero and runs up to 2 % fast or slow."""
    broken_gradients: float = 0.0
    damaged_bytes: float = 0.0
    """Share of a member's reductions that end with other bytes than its replicas have."""
    liars: int = 0
    """Strangers that send what the protocol forbids to everybody."""
    rogue_trainers: int = 0
    """Strangers that have members count what is leased to others."""
    forgers: int = 0
    """Members that also send decisions and reports that everybody must refuse."""
    late_reports: float = 0.0
    """Share of what a busy shell reports to the cores a moment late: how a reduction or a call ended."""
    stage_wishes: float = 0.0
    """Share of the peers that ask for a certain stage."""
    hushed_leads: int = 0
    """Leads that are cut off in the moment in which they have decided: nobody else knows of it."""
    contested_elections: int = 0
    """See tests.sim.contest."""
    lying_members: int = 0
    """Members that lie about what they counted and reduced."""
    topic_loss: float = 0.0
    """Share of the rumours on the run's topic that a listener misses."""
    topic_repeats: float = 0.0
    """Share that comes again, up to a minute later."""

    @classmethod
    def draw(cls, seed: int) -> Faults:
        """Decide which kinds exist in this run, then how much of each."""
        calm = _source(
            seed, "calm"
        ).random()  # some runs have hardly any fault, so that each is seen alone

        def share(name: str, most: float) -> float:
            rng = _source(seed, name)
            return most * rng.random() if rng.random() > calm else 0.0

        def count(name: str, most: int) -> int:
            rng = _source(seed, name)
            return rng.randint(1, most) if rng.random() > calm else 0

        def present(name: str, chance: float = 1.0) -> bool:
            rng = _source(seed, name)
            return rng.random() < chance and rng.random() > calm

        return cls(
            loss=share("loss", 0.15),
            repeat=share("repeat", 0.15),
            reordering=share("reordering", 8.0),
            heavy_tail=share("heavy_tail", 0.05),
            slow_peers=count("slow_peers", 2),
            silent_peers=count("silent_peers", 6),
            partitions=count("partitions", 4),
            one_way_partitions=count("one_way_partitions", 4),
            flapping_partitions=count("flapping_partitions", 4),
            crashes=count("crashes", 2),
            restarts_without_state=count("restarts_without_state", 4),
            restarts_with_state=count("restarts_with_state", 4),
            mass_preemption=present("mass_preemption", 0.3),
            shutdown=present("shutdown", 0.2),
            joins=count("joins", 4),
            leaves=count("leaves", 2),
            observers=count("observers", 2),
            stale_directory=present("stale_directory"),
            unavailable_directory=present("unavailable_directory"),
            clock_skew=present("clock_skew"),
            broken_gradients=share("broken_gradients", 0.004),
            damaged_bytes=share("damaged_bytes", 0.03),
            liars=count("liars", 1),
            rogue_trainers=count("rogue_trainers", 2),
            forgers=count("forgers", 2),
            late_reports=share("late_reports", 0.5),
            stage_wishes=share("stage_wishes", 1.0),
            hushed_leads=count("hushed_leads", 5),
            contested_elections=count("contested_elections", 12),
            lying_members=count("lying_members", 1),
            topic_loss=share("topic_loss", 1.0),
            topic_repeats=share("topic_repeats", 0.5),
        )

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds this run has."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name))


def _source(seed: int, name: str) -> random.Random:
    return random.Random(f"faults/{seed}/{name}")


class Injector:
    """Plans the faults of one world between 0 and `until_s`."""

    def __init__(self, world: World, until_s: float) -> None:
        self._world = world
        self._rng = world.rng
        self._until_s = until_s

    def plan(self) -> None:
        """Put every drawn fault at a random time."""
        faults, world = self._world.faults, self._world
        peers = list(world.peers.values())
        for _ in range(faults.silent_peers):
            self._some_time(self._stop, self._rng.choice(peers))
        for _ in range(faults.partitions):
            self._some_time(self._partition, False)
        for _ in range(faults.one_way_partitions):
            self._some_time(self._partition, True)
        for _ in range(faults.flapping_partitions):
            self._some_time(self._flap)
        for peer in self._rng.sample(peers, faults.slow_peers):
            self._some_time(self._slow, peer)
        for _ in range(faults.joins):
            self._some_time(world.add_peer)
        moments = _source(world.seed, "when leads are hushed")
        for _ in range(faults.hushed_leads):
            at_s = moments.uniform(0, self._until_s)
            world.clock.after(at_s, world.at_next_decision, self._hush)
        contests = _source(world.seed, "when elections are contested")
        for _ in range(faults.contested_elections):
            world.clock.after(contests.uniform(0, self._until_s), self._contest, contests)
        if faults.unavailable_directory:
            self._some_time(self._directory_outage)
        self._plan_deaths(peers)
        for number in range(faults.liars):
            Liar(world, number).start(self._until_s)
        for number in range(faults.rogue_trainers):
            RogueTrainer(world, number).start(self._until_s)
        forging = _source(world.seed, "who forges")
        for peer in forging.sample(peers, faults.forgers):
            Forger(world, peer).start(self._until_s)
        chosen = _source(world.seed, "who lies")
        hosts = [peer for peer in peers if not peer.observer]
        for peer in chosen.sample(hosts, faults.lying_members):
            LyingMember(world, peer).start()

    def _plan_deaths(self, peers: Sequence[SimPeer]) -> None:
        """Crashes, restarts, leaves and the mass preemption; who crashes or leaves for good is not restarted before."""
        faults = self._world.faults
        victims = self._rng.sample(list(peers), len(peers))
        may_die = (len(peers) - 1) // 2
        for action, wanted in ((self._crash, faults.crashes), (self._leave, faults.leaves)):
            for _ in range(min(wanted, may_die)):
                may_die -= 1
                self._some_time(action, victims.pop())
        for keeps_state, wanted in (
            (False, faults.restarts_without_state),
            (True, faults.restarts_with_state),
        ):
            for _ in range(wanted):
                self._some_time(self._crash_and_restart, self._rng.choice(victims), keeps_state)
        if faults.mass_preemption:
            start_s = self._rng.uniform(0, self._until_s)
            notice = self._rng.random() < 0.7
            for victim in self._rng.sample(list(peers), len(peers) // 2):
                at_s = start_s + self._world.scaled(PREEMPTION_S * self._rng.random())
                self._world.clock.after(at_s, self._leave if notice else self._crash, victim)
        if faults.shutdown:
            rng = _source(self._world.seed, "when all leave")
            start_s = rng.uniform(0, self._until_s)
            for peer in peers:
                at_s = start_s + self._world.scaled(PREEMPTION_S * rng.random())
                self._world.clock.after(at_s, self._leave, peer)

    def _some_time(self, action: Callable[..., None], *args: object) -> None:
        self._world.clock.after(self._rng.uniform(0, self._until_s), action, *args)

    def _for_a_while(self, longest_s: float, undo: Callable[..., None], *args: object) -> None:
        self._world.clock.after(self._world.scaled(self._rng.uniform(0.5, longest_s)), undo, *args)

    # --- the faults ---

    def _stop(self, peer: SimPeer) -> None:
        self._world.log(f"stop {peer.name}")
        peer.stop()
        self._for_a_while(8.0, peer.go_on)

    def _slow(self, peer: SimPeer) -> None:
        self._world.log(f"slow {peer.name}")
        self._world.network.slow[peer.peer_id] = 2 + 30 * self._rng.random()
        peer.stage.slowness *= 2 + 8 * self._rng.random()

    def _crash(self, peer: SimPeer) -> None:
        if peer.up:
            self._world.log(f"crash {peer.name}")
            peer.crash()

    def _crash_and_restart(self, peer: SimPeer, keeps_state: bool) -> None:
        if peer.up:
            self._crash(peer)
            self._for_a_while(6.0, self._restart, peer, keeps_state)

    def _restart(self, peer: SimPeer, keeps_state: bool) -> None:
        if not peer.up and not peer.left:
            self._world.log(f"restart {peer.name}{' with its state' if keeps_state else ''}")
            peer.restart(keeps_state=keeps_state)

    def _leave(self, peer: SimPeer) -> None:
        if peer.up and not peer.draining:
            self._world.log(f"drain {peer.name}")
            peer.drain()

    def _links_of_a_side(self, *, one_way: bool) -> list[Link]:
        ids = list(self._world.peers)
        side = self._rng.sample(ids, self._rng.randint(1, max(1, len(ids) - 1)))
        inside = set(side)
        links = [(a, b) for a in side for b in ids if b not in inside]
        if not one_way:
            links += [(b, a) for a, b in links]
        names = ",".join(sorted(peer.short for peer in side))
        self._world.log(f"cut {names}{' one way' if one_way else ''}")
        return links

    def _partition(self, one_way: bool) -> None:
        links = self._links_of_a_side(one_way=one_way)
        self._world.network.cut(links)
        self._for_a_while(10.0, self._world.network.join, links)

    def _hush(self, lead: SimPeer) -> None:
        """Cut the way out of one that has just decided a record, before it tells anybody; it still hears."""
        others = (peer for peer in self._world.peers if peer != lead.peer_id)
        links = [(lead.peer_id, peer) for peer in others]
        self._world.log(f"hush {lead.name}")
        self._world.network.cut(links)
        self._world.clock.after(5 * self._world.settings.silence_s, self._world.network.join, links)

    def _contest(self, rng: random.Random) -> None:
        world, record = self._world, self._world.newest_record
        if record is not None and record.lead in record.view and world.peers[record.lead].up:
            world.log(f"contest the lead of {record.lead.decode()}")
            world.contest = Contest(world, record.lead, rng)

    def _flap(self) -> None:
        links = self._links_of_a_side(one_way=self._rng.random() < 0.5)
        at_s = 0.0
        for _ in range(self._rng.randint(3, 8)):
            self._world.clock.after(at_s, self._world.network.cut, links)
            at_s += self._world.scaled(self._rng.uniform(0.1, 3.0))
            self._world.clock.after(at_s, self._world.network.join, links)
            at_s += self._world.scaled(self._rng.uniform(0.1, 3.0))

    def _directory_outage(self) -> None:
        self._world.log("directory out")
        self._world.directory.available = False
        self._for_a_while(15.0, self._directory_back)

    def _directory_back(self) -> None:
        self._world.directory.available = True
