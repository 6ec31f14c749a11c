"""The faults that every mode's runs have: drawn from the seed, and how they are done.

A mode derives from `Faults` and `Injector` what only it knows. A field's default says how it is drawn: `share`, `count` or
`chance`. Each is drawn from a random source of its own name, so a new one changes no seed's other faults. Most kinds are
absent from about half of the runs, so rare combinations happen alone and together.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.sim.engine.network import Link

if TYPE_CHECKING:
    from typing import Self

    from tests.sim.engine.peer import SimPeer
    from tests.sim.engine.world import World

PREEMPTION_S = 10.0
"""Half of the peers go within this many seconds."""
_RETURN_S = 20.0
"""Who comes back is back within so long after that, or when all faults end: no fault is left to come then."""


_Draw: TypeAlias = Callable[[random.Random, float], Any]
"""From a kind's own source and the run's calm, 0 ... 1: the larger it is, the fewer kinds there are."""


def share(most: float) -> Any:
    """Draw a part of `most`, or none."""
    return _drawn(0.0, lambda rng, calm: most * rng.random() if rng.random() > calm else 0.0)


def count(most: int) -> Any:
    """Draw 1 ... most, or none."""
    return _drawn(0, lambda rng, calm: rng.randint(1, most) if rng.random() > calm else 0)


def chance(likelihood: float = 1.0) -> Any:
    """Draw yes or no; no more than this share of the runs has it."""
    return _drawn(False, lambda rng, calm: rng.random() < likelihood and rng.random() > calm)


def never(absent: object) -> Any:
    """Leave out a kind that would do nothing in a mode."""
    return dataclasses.field(default=absent)


def _drawn(absent: object, draw: _Draw) -> Any:
    return dataclasses.field(default=absent, metadata={"draw": draw})


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How much of each kind this run has. Times are in units of the run's time scale."""

    loss: float = share(0.15)
    repeat: float = share(0.15)
    reordering: float = share(8.0)
    heavy_tail: float = share(0.05)
    slow_peers: int = count(2)
    silent_peers: int = count(6)
    """Stopped, not dead: they go on later, with what they knew."""
    partitions: int = count(4)
    one_way_partitions: int = count(4)
    flapping_partitions: int = count(4)
    crashes: int = count(2)
    restarts_without_state: int = count(4)
    restarts_with_state: int = count(4)
    mass_preemption: bool = chance(0.3)
    """Half of those that are there at the beginning go for good within ten seconds."""
    returns: int = count(1)
    """How often half of them go within ten seconds, with notice or without, and come back in any order."""
    shutdown: bool = chance(0.2)
    """All that are there at the beginning are told to leave within ten seconds."""
    joins: int = count(4)
    leaves: int = count(2)
    stale_directory: bool = chance()
    unavailable_directory: bool = chance()
    clock_skew: bool = chance()
    """Each peer's clock has its own zero and runs up to 2 % fast or slow."""
    late_reports: float = share(0.5)
    """Share of what a busy shell reports to the cores a moment late: how a reduction or a call ended."""
    topic_loss: float = share(1.0)
    """Share of the hints on the run's topic that a listener misses."""
    topic_repeats: float = share(0.5)
    """Share that comes again, up to a minute later."""

    @classmethod
    def draw(cls, seed: int) -> Self:
        """Decide which kinds exist in this run, then how much of each. Calm runs have hardly any: each is seen alone."""
        calm = source(seed, "calm").random()
        draws = {f.name: f.metadata["draw"] for f in _possible(cls)}
        return cls(**{name: draw(source(seed, name), calm) for name, draw in draws.items()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all kinds that a run may have."""
        return tuple(field.name for field in _possible(cls))

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds this run has."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name))


def _possible(faults: type[Faults]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(faults) if field.metadata]


def source(seed: int, name: str) -> random.Random:
    """Return the random source of one kind of fault."""
    return random.Random(f"faults/{seed}/{name}")


class Injector:
    """Plans the faults of one world between 0 and `until_s`."""

    def __init__(self, world: World[Any], until_s: float) -> None:
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
        if faults.unavailable_directory:
            self._some_time(self._directory_outage)
        self._plan_deaths(peers)

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
            rng = source(self._world.seed, "when all leave")
            start_s = rng.uniform(0, self._until_s)
            for peer in peers:
                at_s = start_s + self._world.scaled(PREEMPTION_S * rng.random())
                self._world.clock.after(at_s, self._leave, peer)
        self._plan_returns(peers)

    def _plan_returns(self, peers: Sequence[SimPeer]) -> None:
        """Have half of the peers taken away and given back. Some get notice, and what is on a disk may be lost with it."""
        faults, world = self._world.faults, self._world
        rng = source(world.seed, "who is preempted for a while")
        for _ in range(faults.returns):
            start_s = rng.uniform(0, self._until_s)
            together_s = PREEMPTION_S * rng.choice((1.0, 1.0, 1.0, 0.05))
            for victim in rng.sample(list(peers), len(peers) // 2):
                leave_s = start_s + world.scaled(together_s * rng.random())
                back_s = start_s + world.scaled(together_s + _RETURN_S * rng.random())
                action = self._leave if rng.random() < 0.5 else self._crash
                keeps_state = rng.random() < 0.5
                world.clock.after(leave_s, self._preempt, victim, action)
                world.clock.after(min(back_s, self._until_s), self._return, victim, keeps_state)

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
        peer.slowness *= 2 + 8 * self._rng.random()

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

    def _preempt(self, peer: SimPeer, action: Callable[[SimPeer], None]) -> None:
        if peer.up and not peer.draining and self._world.healed_s is None:
            peer.comes_back = True
            action(peer)

    def _return(self, peer: SimPeer, keeps_state: bool) -> None:
        """Come back; who still leaves does so later."""
        if not peer.comes_back:
            return
        if peer.up:
            self._for_a_while(2.0, self._return, peer, keeps_state)
        else:
            self._restart(peer, keeps_state)

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

    def _flap(self) -> None:
        links = self._links_of_a_side(one_way=self._rng.random() < 0.5)
        at_s = 0.0
        for _ in range(self._rng.randint(3, 8)):
            self._world.clock.after(at_s, self._cut_again, links)
            at_s += self._world.scaled(self._rng.uniform(0.1, 3.0))
            self._world.clock.after(at_s, self._world.network.join, links)
            at_s += self._world.scaled(self._rng.uniform(0.1, 3.0))

    def _cut_again(self, links: Sequence[Link]) -> None:
        if self._world.healed_s is None:  # else its last cuts would come when all faults have ended
            self._world.network.cut(links)

    def _directory_outage(self) -> None:
        self._world.log("directory out")
        self._world.directory.available = False
        self._for_a_while(15.0, self._directory_back)

    def _directory_back(self) -> None:
        self._world.directory.available = True
