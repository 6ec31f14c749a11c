"""Who sends what must be refused: strangers that are no peers of the run, and members that lie.

A lying member takes part honestly, too: its core votes once in each attempt. Beside that it gives sums that differ from one
asker to the next and vectors of past rounds, forms groups whose members see different lists, and says what is not so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from protocols.averaging.messages import (
    Begin,
    Form,
    Have,
    Join,
    Late,
    Leaving,
    Member,
    Message,
    Noted,
    Prepare,
    Promise,
    Result,
    Trouble,
    round_id_of,
)
from protocols.ids import PeerID
from tests.sim.averaging.exchange import Sum, Vector

if TYPE_CHECKING:
    from tests.sim.averaging.peer import AveragingPeer
    from tests.sim.averaging.world import AveragingWorld

_HUGE: Final = 2**62
_LAYOUT: Final = b"l" * 32


class Stranger:
    """Authenticated, but the directory does not name it."""

    def __init__(self, world: AveragingWorld, number: int) -> None:
        self.peer_id = PeerID(b"liar%04d" % number)
        self._world = world
        self._rng = random.Random(f"stranger/{world.seed}/{number}")

    def start(self, until_s: float) -> None:
        """Speak until the world heals."""
        self._until_s = until_s
        self._world.liars.add(self.peer_id)
        self._speak()

    def _speak(self) -> None:
        world, rng = self._world, self._rng
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(rng.random()), self._speak)
        victim = rng.choice(list(world.peers.values()))
        if victim.up and not victim.stopped:
            message = rng.choice(said_by(rng, victim, self.peer_id))()
            world.forge(self.peer_id, victim.peer_id, message)


class LyingMember:
    """A peer of the run with an honest core, and what goes out beside it."""

    def __init__(self, world: AveragingWorld, peer: AveragingPeer) -> None:
        self._world = world
        self._peer = peer
        self._rng = random.Random(f"lying member/{world.seed}/{peer.name}")
        self._old: Vector | None = None

    def start(self, until_s: float) -> None:
        """Lie until the world heals."""
        self._until_s = until_s
        self._world.log(f"{self._peer.name} lies")
        self._world.liars.add(self._peer.peer_id)
        self._peer.lies = self
        self._lie()

    def vector(self, true: Vector) -> Vector:
        """Give a member our vector; sometimes one of a round before."""
        old, self._old = self._old, true
        return old if old is not None and self._rng.random() < 0.1 else true

    def sum(self, true: Sum, asker: PeerID) -> Sum:
        """Give a member our sum; sometimes another one than the others get."""
        return replace(true, lie=str(asker)) if self._rng.random() < 0.2 else true

    def _lie(self) -> None:
        world, rng, me = self._world, self._rng, self._peer
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(rng.random()), self._lie)
        others = [peer for peer in world.peers.values() if peer is not me and peer.up]
        if not me.up or me.stopped or not others:
            return
        victim = rng.choice(others)
        if victim.stopped or not world.network.reaches(me.peer_id, victim.peer_id):
            return
        if rng.random() < 0.2:
            self._two_lists(others)
        else:
            lie = rng.choice(said_by(rng, victim, me.peer_id))()
            vote = isinstance(lie, Have) or (isinstance(lie, Promise) and lie.accepted == 0)
            if not vote:  # two votes can split a round; a promise of what cannot be is none
                world.forge(me.peer_id, victim.peer_id, lie)

    def _two_lists(self, others: list[AveragingPeer]) -> None:
        """Invite everybody that came to us, each to another group under one number."""
        rng, me = self._rng, self._peer.peer_id
        nonce = rng.getrandbits(62)
        for victim in others:
            key = rng.choice(self._world.keys)
            joined = wanted_of(victim, key)
            if joined is None:
                continue
            partner = Member(rng.choice(others).peer_id, 1.0, 0.0)
            own = Member(victim.peer_id, joined.weight, joined.bandwidth)
            if partner.peer == own.peer:
                continue
            members = tuple(sorted((own, partner), key=lambda member: member.peer))
            form = Form(key, joined.version, _LAYOUT, nonce, 0.0, members)
            self._world.forge(me, victim.peer_id, form)
            if rng.random() < 0.5:
                self._world.forge(me, victim.peer_id, Begin(round_id_of(form, me), 1, (0, 1)))


def wanted_of(victim: AveragingPeer, key: str) -> Join | None:
    want = victim.core._wants.get(key)
    return want.join if want is not None else None


def said_by(rng: random.Random, victim: AveragingPeer, me: PeerID) -> list[Callable[[], Message]]:
    """Return what could be said to a peer, in the terms of the rounds that it knows."""
    key = rng.choice(victim.world.keys)
    version = victim.versions[key]
    rounds = [want.round for want in victim.core._wants.values() if want.round is not None]
    rounds += [ended.round for ended in victim.core._ended.values()]
    round_id = rng.choice(rounds).round_id if rounds else b"r" * 32
    digest = b"d" * 32
    counts = [len(r.form.members) for r in rounds if r.round_id == round_id]
    everybody = tuple(range(max([2, *counts])))
    result = Result(1, everybody, (digest,) * len(everybody))
    members = tuple(Member(peer, 1.0, 0.0) for peer in sorted({me, victim.peer_id}))
    attempt = rng.choice((1, 2, 3, 5, 9_999))
    proposals = [r._proposal for r in rounds if r.round_id == round_id and r._proposal is not None]
    proposed = proposals[0].attempt if proposals else attempt
    return [
        lambda: Join(key, rng.choice((version, version + 1, _HUGE)), _LAYOUT, 1.0, 0.0),
        lambda: Join(key, version, _LAYOUT, rng.choice((0.0, 1e9)), 0.0),
        lambda: Join(key, version, b"x" * 32, 1.0, 0.0),
        lambda: Form(key, version, _LAYOUT, rng.getrandbits(62), 0.0, members),
        lambda: Form(key, version, _LAYOUT, rng.getrandbits(62), 0.0, members[::-1]),
        lambda: Noted(key, version, rng.choice((me, victim.peer_id))),
        lambda: Late(key, version, rng.choice((0, _HUGE))),
        lambda: Begin(round_id, attempt, rng.choice(((0, 1), (1, 0), (0, 1, 2), (64,)))),
        lambda: Begin(round_id, max(2, attempt), (0, 1), result, (0,)),
        lambda: Begin(round_id, max(2, attempt), (0, 1), replace(result, group=(0,)), (0,)),
        lambda: Have(round_id, attempt, result),
        lambda: Trouble(round_id, attempt, rng.choice((0, 1, 2, 64))),
        lambda: Prepare(round_id, attempt),
        lambda: Promise(round_id, proposed, rng.choice((0, proposed)), rng.choice((None, result))),
        lambda: Leaving(round_id),
    ]
