"""What group averaging promises, each watched from outside: from what the cores take and say, and from what is really summed."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from protocols.averaging.events import (
    RoundAborted,
    RoundCancelled,
    RoundFinished,
    RoundWanted,
    StartExchange,
)
from protocols.averaging.messages import Agree
from protocols.core import Blame
from protocols.ids import PeerID
from tests.sim.averaging.exchange import Vector
from tests.sim.engine import checker
from tests.sim.engine.checker import on

if TYPE_CHECKING:
    from tests.sim.averaging.peer import AveragingPeer
    from tests.sim.averaging.world import AveragingWorld

Life: TypeAlias = tuple[PeerID, int]


def life_of(peer: AveragingPeer) -> Life:
    return peer.peer_id, peer.life


class Checker(checker.Checker):
    """Watches one promise of an averaging world."""

    world: AveragingWorld


class SameForAll(Checker):
    """All that finish a round have averaged the same vectors, to the last bit."""

    promise = "same for all"

    def __init__(self, world: AveragingWorld) -> None:
        super().__init__(world)
        self._means: dict[bytes, tuple[Any, ...]] = {}

    @on(RoundFinished)
    def finishes(self, peer: AveragingPeer, done: RoundFinished) -> None:
        held = peer.means.get(done.round_id)
        if held is None:
            raise self.broken(f"{peer.name} finishes a round whose mean it does not hold")
        mean = (done.exchange, done.members, held.digests)
        if self._means.setdefault(done.round_id, mean) != mean:
            raise self.broken(
                f"{peer.name} finishes with {mean}, another with {self._means[done.round_id]}"
            )


class CountedOnce(Checker):
    """A mean is of the members' vectors of this version, each whole; and a vector is in one mean at most."""

    promise = "counted once"

    def __init__(self, world: AveragingWorld) -> None:
        super().__init__(world)
        self._counted: dict[Vector, bytes] = {}

    @on(RoundFinished)
    def finishes(self, peer: AveragingPeer, done: RoundFinished) -> None:
        held = peer.means.get(done.round_id)
        members = {member.peer for member in done.members}
        for part in held.mean if held is not None else ():
            if {vector.peer for vector in part.vectors} != members or len(part.vectors) != len(
                members
            ):
                raise self.broken(
                    f"{peer.name} finishes with a part of {part.vectors}, not of {members}"
                )
            for vector in part.vectors:
                if (vector.key, vector.version) != (done.key, done.version):
                    raise self.broken(f"{vector} is in a mean of version {done.version}")
                liar = vector.peer in self.world.liars  # it may send one vector as two
                if not liar and self._counted.setdefault(vector, done.round_id) != done.round_id:
                    raise self.broken(f"{vector} is in two means")


class AgreedFirst(Checker):
    """Vectors are exchanged after all members have agreed, in groups of the right size, once in a version."""

    promise = "agreed first"

    def __init__(self, world: AveragingWorld) -> None:
        super().__init__(world)
        self._agreed: dict[bytes, set[PeerID]] = defaultdict(set)
        self._rounds: dict[tuple[Life, str, int], bytes] = {}

    @on(Agree)
    def agrees(self, peer: AveragingPeer, message: Agree) -> None:
        self._agreed[message.round_id].add(peer.peer_id)

    @on(StartExchange)
    def starts(self, peer: AveragingPeer, effect: StartExchange) -> None:
        members = {member.peer for member in effect.members}
        honest = not self.world.liars  # a lying meeting place may begin what it likes
        missing = members - self._agreed[effect.round_id]
        if missing and honest:
            raise self.broken(f"{peer.name} exchanges with {missing}, who did not agree")
        if len(members) > self.world.spec.group_max + 1:
            raise self.broken(f"{peer.name} is in a group of {len(members)}")
        what = life_of(peer), effect.key, effect.version
        if self._rounds.setdefault(what, effect.round_id) != effect.round_id:
            raise self.broken(f"{peer.name} is in two rounds of version {effect.version}")


class EndsInTime(Checker):
    """Whoever wants a round hears of its end, and memory stays bounded meanwhile."""

    promise = "ends in time"

    def __init__(self, world: AveragingWorld) -> None:
        super().__init__(world)
        self._since_s: dict[tuple[Life, str], float] = {}

    @on(RoundWanted)
    def wants(self, peer: AveragingPeer, event: RoundWanted) -> None:
        self._since_s[life_of(peer), event.key] = self.world.clock.now_s

    @on(RoundFinished, RoundAborted, RoundCancelled)
    def ends(self, peer: AveragingPeer, what: Any) -> None:
        self._since_s.pop((life_of(peer), what.key), None)

    def looked(self) -> None:
        spec, now_s = self.world.spec, self.world.clock.now_s
        peers = self.world.peers
        longest_s = 2 * (
            spec.gather_ceiling_s + (12 + len(peers)) * spec.answer_s + 4 * spec.exchange_ceiling_s
        )
        for (life, key), since_s in list(self._since_s.items()):
            peer = peers[life[0]]
            if not peer.up or peer.life != life[1]:
                del self._since_s[life, key]
            elif peer.stopped:
                self._since_s[life, key] = now_s
            elif now_s - since_s > longest_s:
                raise self.broken(f"{peer.name} waits for {key} since {now_s - since_s:.0f} s")


class Bounded(Checker):
    """What others can make a peer remember follows the peers and keys that there are."""

    promise = "bounded"
    _MOST: Final = 900

    def looked(self) -> None:
        for peer in self.world.peers.values():
            rounds = len(peer.core._ended)
            if rounds > 2 * len(self.world.keys):
                raise self.broken(f"{peer.name} remembers {rounds} rounds")
            kept = len(peer.means) + len(peer.exchanges)
            if kept > 6 * len(self.world.keys):
                raise self.broken(f"{peer.name} keeps {kept} vectors for rounds")


class NobodyHonestBlamed(Checker):
    """Only those that lie are blamed."""

    promise = "nobody honest is blamed"

    @on(Blame)
    def blames(self, peer: AveragingPeer, effect: Blame) -> None:
        if effect.peer not in self.world.liars:
            raise self.broken(f"{peer.name} blames {effect.peer!r}: {effect.reason}")


_DEATHS: Final = frozenset(
    {"crashes", "deaths_in_rounds", "restarts_without_state", "mass_preemption", "returns", "shutdown", "joins", "leaves",
     "stale_directory", "unavailable_directory", "clock_skew", "repeat"}
)  # fmt: skip


class SurvivorsFinish(Checker):
    """Where the only faults are deaths, a round that has begun finishes for those left, as long as more than half are."""

    promise = "survivors finish"

    def __init__(self, world: AveragingWorld) -> None:
        super().__init__(world)
        self._members: dict[bytes, dict[PeerID, int]] = defaultdict(dict)
        """The lives in which members agreed."""
        self._round_of: dict[tuple[Life, str, int], bytes] = {}

    @on(Agree)
    def agrees(self, peer: AveragingPeer, message: Agree) -> None:
        self._members[message.round_id][peer.peer_id] = peer.life

    @on(StartExchange)
    def starts(self, peer: AveragingPeer, effect: StartExchange) -> None:
        self._round_of[life_of(peer), effect.key, effect.version] = effect.round_id

    @on(RoundAborted)
    def aborts(self, peer: AveragingPeer, effect: RoundAborted) -> None:
        if not effect.begun or not set(self.world.faults.kinds()) <= _DEATHS:
            return
        round_id = self._round_of.get((life_of(peer), effect.key, effect.version))
        lives = self._members.get(round_id, {}) if round_id is not None else {}
        left = [who for who, life in lives.items() if self._lives(who, life)]
        if len(left) > len(lives) / 2:
            raise self.broken(
                f"{peer.name} gives up a round of which {len(left)} of {len(lives)} live: {effect.reason}"
            )

    def _lives(self, who: PeerID, life: int) -> bool:
        peer = self.world.peers[who]
        return peer.up and peer.life == life


class AveragingGoesOn(checker.Progress):
    """Once faults end, everybody averages again."""

    promise = "averaging goes on"


ALL: tuple[type[checker.Checker], ...] = (
    SameForAll,
    CountedOnce,
    AgreedFirst,
    EndsInTime,
    Bounded,
    NobodyHonestBlamed,
    SurvivorsFinish,
    AveragingGoesOn,
)
