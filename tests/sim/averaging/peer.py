"""One simulated peer that averages: the real core, and a few lines in place of vectors, sockets and threads."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from protocols.averaging.averaging import Averaging
from protocols.averaging.events import (
    ExchangeFailed,
    FetchMean,
    ForgetRound,
    LookForContacts,
    MeanReady,
    RoundAborted,
    RoundCancelled,
    RoundFinished,
    RoundWanted,
    StartExchange,
)
from protocols.core import ContactsFound, PeerDown, Received
from protocols.ids import PeerID
from tests.sim.averaging.exchange import OWNERS_SHARE, Exchange, FetchCall, Held, Pull, Sum, Vector
from tests.sim.engine.peer import SimPeer

if TYPE_CHECKING:
    from tests.sim.averaging.liar import LyingMember
    from tests.sim.averaging.world import AveragingWorld

LAYOUT: Final = b"l" * 32
_LOOK_S: Final = 0.2


class AveragingPeer(SimPeer):
    """A node that trains for a while, averages, and so on, under each key."""

    world: AveragingWorld

    def __init__(self, world: AveragingWorld, peer_id: PeerID) -> None:
        super().__init__(world, peer_id)
        self.lies: LyingMember | None = None
        self.finished_healed = 0
        """Rounds that it finished since all faults ended."""

    # --- life ---

    def boot(self, saved: None) -> None:
        self.exchanges: dict[bytes, Exchange] = {}
        self.means: dict[bytes, Held] = {}
        self.fetches: dict[bytes, FetchMean] = {}
        self.forgotten: dict[bytes, None] = {}
        self.unserved: list[Pull] = []
        self.versions = dict.fromkeys(self.world.keys, 0)
        self.begun = dict.fromkeys(self.world.keys, 0)
        """The last version whose exchange began here."""
        self.core = Averaging(
            self.peer_id, self.world.spec, rng=random.Random(self.rng.getrandbits(32))
        )
        self.begin(self.core)
        for key in self.world.keys:
            self._train(key)
        self._look_again(self.life)

    def _look_again(self, life: int) -> None:
        if self.up and life == self.life:
            if not self.stopped:
                self._look()
            self.world.clock.after(self.world.look_s, self._look_again, life)

    def _look(self) -> None:
        if self.world.directory.available:
            self.tell(ContactsFound(self.now_s, self.world.directory.members()))

    def lose(self, peer: PeerID) -> None:
        for exchange in list(self.exchanges.values()):
            if peer in exchange.members:
                index = exchange.members.index(peer)
                if peer not in exchange.received or index not in exchange.sums:
                    self.fail(exchange, peer)  # its streams are broken
        self.tell(PeerDown(self.now_s, peer))

    def take(self, source: PeerID, message: Any) -> None:
        self.tell(Received(self.now_s, source, message))

    def leave_in_order(self) -> None:
        for key in self.world.keys:
            self.tell(RoundCancelled(self.now_s, key))
        self.gone()

    def tell(self, event: Any) -> None:
        self.drive(self.core, event)

    def happens(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate

    # --- training, and wanting ---

    def _train(self, key: str) -> None:
        seconds = self.world.train_s * self.slowness * (0.8 + 0.4 * self.rng.random())
        self.later(seconds, self._want, key, self.versions[key] + 1)

    def _want(self, key: str, version: int) -> None:
        if self.draining:
            return
        self.versions[key] = version
        self.tell(RoundWanted(self.now_s, key, version, LAYOUT, 1.0 + self.rng.random()))

    def _missed(self, effect: RoundAborted) -> None:
        """Want the next round, or the one at which the others are."""
        key, version = effect.key, self.versions[effect.key]
        if effect.begun:
            self.begun[key] = version
            self._train(key)
            return
        late = effect.reason == "came too late"
        if not late and effect.newest < version:
            # Ahead of the others, because of a liar: the mode fetches their state then, and begins anew.
            if self.begun[key] >= effect.newest:
                self.later(0.0, self._begin_anew)
                return
            version = effect.newest
        self.later(self.world.scaled(0.1), self._want, key, max(version + late, effect.newest))

    def _begin_anew(self) -> None:
        self.world.log(f"begin anew {self.name}")
        self.crash()
        self.world.clock.after(self.world.scaled(self.rng.random()), self._return)

    def _return(self) -> None:
        if not self.up and not self.left:
            self.restart(keeps_state=False)

    def vector(self, key: str, version: int) -> Vector:
        return Vector(self.peer_id, self.life, key, version)

    # --- what the core says ---

    def do(self, effect: Any) -> None:
        match effect:
            case StartExchange():
                self._start(effect)
            case FetchMean():
                self.exchanges.pop(effect.round_id, None)
                self.fetches[effect.round_id] = effect
                FetchCall(self, effect).begin(effect.deadline_s)
            case RoundFinished():
                self.begun[effect.key] = effect.version
                self.finished_healed += self.world.healed_s is not None
                self._train(effect.key)
                self.world.advanced()
            case RoundAborted():
                self._missed(effect)
            case ForgetRound():
                self._forget(effect.round_id)
            case LookForContacts():
                self.later(_LOOK_S, self._look)
            case _:
                super().do(effect)

    def _forget(self, round_id: bytes) -> None:
        for table in (self.exchanges, self.means, self.fetches):
            table.pop(round_id, None)
        self.forgotten[round_id] = None
        self._serve_again()

    # --- exchanges ---

    def _start(self, effect: StartExchange) -> None:
        if self.happens(self.world.deaths_in_rounds) and not self.draining:
            self.later(self.world.scaled(0.3) * self.rng.random(), self._begin_anew)
        self.fetches.pop(effect.round_id, None)
        members = [member.peer for member in effect.members]
        mine = members.index(self.peer_id)
        vector = self.vector(effect.key, effect.version)
        exchange = Exchange(effect, vector, mine, {self.peer_id: vector})
        self.exchanges[effect.round_id] = exchange
        self.begun[effect.key] = effect.version
        for peer in members:
            if peer != self.peer_id:
                Pull(self, peer, exchange, summed=False).begin(OWNERS_SHARE * effect.deadline_s)
        self.sum_if_all(exchange)
        self._serve_again()

    def sum_if_all(self, exchange: Exchange) -> None:
        """Once all vectors are here our part is summed, and the others' sums are asked for."""
        if len(exchange.received) == len(exchange.members) and exchange.mine not in exchange.sums:
            seconds = self.world.scaled(0.05) * self.slowness
            self.later(seconds, self._summed, exchange)

    def _summed(self, exchange: Exchange) -> None:
        if exchange.mine in exchange.sums or exchange.failed:
            return
        exchange.sums[exchange.mine] = Sum(frozenset(exchange.received.values()))
        for peer in exchange.members:
            if peer != self.peer_id:
                Pull(self, peer, exchange, summed=True).begin(exchange.effect.deadline_s)
        self._serve_again()
        self.finish_if_all(exchange)

    def finish_if_all(self, exchange: Exchange) -> None:
        effect = exchange.effect
        if len(exchange.sums) < len(exchange.members) or exchange.over:
            return
        exchange.over = True
        mean = tuple(exchange.sums[index] for index in range(len(exchange.members)))
        digests = tuple(part.digest for part in mean)
        self.report(self._hold, exchange, Held(effect.exchange, digests, mean))

    def _hold(self, exchange: Exchange, held: Held) -> None:
        """The whole mean is here, unless something else was begun meanwhile."""
        round_id = exchange.effect.round_id
        if self.exchanges.get(round_id) is exchange:
            self.means[round_id] = held
            self.tell(MeanReady(self.now_s, round_id, held.exchange, held.digests))

    def fail(self, exchange: Exchange, peer: PeerID) -> None:
        """An exchange cannot be finished because of a member; nobody gets a sum of it here any more."""
        effect = exchange.effect
        if self.exchanges.get(effect.round_id) is exchange and not exchange.over:
            exchange.over = exchange.failed = True
            self._serve_again()
            self.tell(ExchangeFailed(self.now_s, effect.round_id, effect.exchange, peer))

    def exchanges_served(self, pull: Pull) -> None:
        if not pull.try_answer(self):
            self.unserved.append(pull)

    def _serve_again(self) -> None:
        waiting, self.unserved = self.unserved, []
        self.unserved += [pull for pull in waiting if pull.wanted() and not pull.try_answer(self)]

    def lie_about(self, vector: Vector) -> Vector:
        return self.lies.vector(vector) if self.lies is not None else vector

    def lie_about_sum(self, own: Sum, asker: PeerID) -> Sum:
        return self.lies.sum(own, asker) if self.lies is not None else own
