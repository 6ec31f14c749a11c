"""An exchange without numbers: a vector is a token that says whose it is, and a sum the set of tokens that are in it.

As over the network, a member pulls its part from all others, and then the sums of the other parts; an answer waits until what
is asked for is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from protocols.averaging.events import ExchangeFailed, FetchMean, MeanReady, StartExchange
from protocols.ids import PeerID
from tests.sim.engine.call import Call

if TYPE_CHECKING:
    from tests.sim.averaging.peer import AveragingPeer


@dataclass(frozen=True, slots=True, order=True)
class Vector:
    """What one peer wants averaged."""

    peer: PeerID
    life: int
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class Sum:
    """One part, summed by its owner."""

    vectors: frozenset[Vector]
    lie: str = ""
    """What a lying owner added, other for each who asks."""

    @property
    def digest(self) -> bytes:
        return hashlib.blake2b(
            repr((sorted(self.vectors), self.lie)).encode(), digest_size=32
        ).digest()


Mean: TypeAlias = tuple[Sum, ...]
_GONE: Final = "gone"
_OVERTAKEN: Final = "overtaken"
"""It misses somebody else, or goes on with another attempt: not its fault."""
OWNERS_SHARE: Final = 0.7
"""Of an exchange's time for an owner to miss a member, as in the shell."""


@dataclass(slots=True)
class Exchange:
    """One exchange that a peer takes part in."""

    effect: StartExchange
    vector: Vector
    mine: int
    received: dict[PeerID, Vector] = field(default_factory=dict)
    sums: dict[int, Sum] = field(default_factory=dict)
    over: bool = False
    failed: bool = False

    @property
    def members(self) -> list[PeerID]:
        return [member.peer for member in self.effect.members]


@dataclass(frozen=True, slots=True)
class Held:
    """A whole mean."""

    exchange: int
    digests: tuple[bytes, ...]
    mean: Mean


class _ToMember(Call):
    """A question to a member; a stranger that has come into a group gives no answer."""

    __slots__ = ()

    def arrive(self) -> None:
        if self.target_id in self.world.peers:
            super().arrive()


class Pull(_ToMember):
    """A question for a member's vector, or for its sum, or for a whole mean."""

    __slots__ = ("exchange", "fetch", "summed", "target")
    asker: AveragingPeer

    def __init__(
        self, asker: AveragingPeer, target: PeerID, exchange: Exchange, *, summed: bool
    ) -> None:
        super().__init__(asker.world, asker, target)
        self.exchange = exchange
        self.summed = summed

    def serve(self, target: AveragingPeer) -> None:
        target.exchanges_served(self)

    def try_answer(self, target: AveragingPeer) -> bool:
        """Answer if what is asked for is there. False: it may come."""
        effect = self.exchange.effect
        theirs = target.exchanges.get(effect.round_id)
        if theirs is None or theirs.effect.exchange < effect.exchange:
            if effect.round_id in target.forgotten:
                self.answer(_GONE)
                return True
            return False
        own = theirs.sums.get(theirs.mine)
        if theirs.effect.exchange > effect.exchange or (theirs.failed and own is None):
            self.answer(_OVERTAKEN)
            return True
        if theirs.members != self.exchange.members:
            self.answer(_GONE)
            return True
        if not self.summed:
            self.answer(target.lie_about(theirs.vector))
            return True
        if own is None:
            return False
        self.answer(target.lie_about_sum(own, self.asker.peer_id))
        return True

    def answered(self, what: object) -> None:
        asker, exchange = self.asker, self.exchange
        if asker.exchanges.get(exchange.effect.round_id) is not exchange or exchange.over:
            return
        if what == _OVERTAKEN:
            return
        if what == _GONE or asker.happens(asker.world.broken_pulls):
            self.failed()
        elif isinstance(what, Vector):
            if (what.key, what.version) != (exchange.vector.key, exchange.vector.version):
                self.failed()  # the shell sees whose and which round's it is: the answer names both
                return
            exchange.received[self.target_id] = what
            asker.sum_if_all(exchange)
        elif isinstance(what, Sum):
            exchange.sums[exchange.members.index(self.target_id)] = what
            asker.finish_if_all(exchange)

    def failed(self) -> None:
        asker, effect = self.asker, self.exchange.effect
        if asker.exchanges.get(effect.round_id) is self.exchange and not self.exchange.over:
            asker.tell(
                ExchangeFailed(asker.now_s, effect.round_id, effect.exchange, self.target_id)
            )


class FetchCall(_ToMember):
    """A question for a whole mean, of one holder after the other."""

    __slots__ = ("effect", "number")
    asker: AveragingPeer

    def __init__(self, asker: AveragingPeer, effect: FetchMean, number: int = 0) -> None:
        super().__init__(asker.world, asker, effect.holders[number])
        self.effect = effect
        self.number = number

    def serve(self, target: AveragingPeer) -> None:
        held = target.means.get(self.effect.round_id)
        self.answer(held if held is not None and held.digests == self.effect.digests else None)

    def answered(self, what: Held | None) -> None:
        asker, effect = self.asker, self.effect
        if asker.fetches.get(effect.round_id) is not effect:
            return
        if what is None or asker.happens(asker.world.broken_pulls):
            self.failed()
            return
        del asker.fetches[effect.round_id]
        asker.means[effect.round_id] = what
        asker.tell(MeanReady(asker.now_s, effect.round_id, effect.exchange, effect.digests))

    def failed(self) -> None:
        asker, effect = self.asker, self.effect
        if asker.fetches.get(effect.round_id) is not effect:
            return
        if self.number + 1 < len(effect.holders):
            FetchCall(asker, effect, self.number + 1).begin(effect.deadline_s)
            return
        del asker.fetches[effect.round_id]
        asker.tell(ExchangeFailed(asker.now_s, effect.round_id, effect.exchange, self.target_id))
