"""A node that lies beside what its honest core does: absurd epochs, false claims and snapshots, ids that are none.

It signs snapshots of its own, of the epochs that experts have, had or come to next, and gives them to whoever asks.

What it does not do: state a plausible newer epoch of another's expert and answer probes. That withholds the expert, and
nothing that a node sees alone can tell it from an honest adopter.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protocols.experts.epoch import next_epoch
from protocols.experts.messages import (
    HOSTS_MAX,
    Average,
    HandOver,
    Keep,
    Message,
    ReplicaOver,
    ReplicaWanted,
    Seen,
    SnapshotOffer,
    Snapshots,
    Stated,
    statement_bytes,
)
from protocols.experts.uid import ExpertUID
from tests.sim.moe.asking import ControlCall, ExpertCall
from tests.sim.moe.state import State, offer_of

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_ABSURD: Final = (1 << 53) - 1


class LyingNode:
    """A node of the run with an honest core, and what goes out beside it."""

    def __init__(self, world: MoeWorld, peer: MoePeer) -> None:
        self._world = world
        self._peer = peer
        self._rng = random.Random(f"lying node/{world.seed}/{peer.name}")

    def start(self, until_s: float) -> None:
        """Lie until the world heals."""
        self._until_s = until_s
        self._world.log(f"{self._peer.name} lies")
        self._world.liars.add(self._peer.peer_id)
        self._peer.lies = self
        self._lie()

    # --- answers ---

    def offer(self, uid: ExpertUID, true: Snapshots) -> Snapshots:
        """Answer who asks for the newest snapshot, and bear false witness."""
        me, other = self._peer.peer_id, self._rng.choice(self._others())
        false = self._forged(uid)
        lies = [
            true.offer,
            offer_of(false, me),
            offer_of(false, me),
            SnapshotOffer(str(uid), 3, 99, false.root, other.peer_id, b"?" * 64),
            next((p.shelf.offers.get(uid) for p in self._others() if p.up), None),  # true, not kept
        ]
        seen = [Seen(false.epoch, peer) for peer in (me, other.peer_id)]
        return Snapshots(self._rng.choice(lies), (*seen, *true.hosts)[:HOSTS_MAX])

    def snapshot(self, offer: SnapshotOffer, asker: MoePeer) -> State | None:
        """Answer who fetches one: what it signed itself, and mostly something else in place of a true one."""
        forged = State(ExpertUID.from_text(offer.uid), offer.epoch, offer.version, forged=True)
        return forged if forged.root == offer.root or self._rng.random() < 0.7 else None

    def _forged(self, uid: ExpertUID) -> State:
        """Make up a state of an epoch in which somebody else has or had this expert, or will have it next, or of none."""
        rng = self._rng
        seen = [peer.core._memory[uid].epoch for peer in self._others()]
        later = next_epoch(max(seen), rng)
        epoch = rng.choice((*seen, max(seen), later, later, _ABSURD))
        return State(uid, epoch, rng.choice((0, 99)), forged=True)

    # --- what nobody asked for ---

    def _others(self) -> list[MoePeer]:
        return [peer for peer in self._world.peers.values() if peer is not self._peer]

    def _lie(self) -> None:
        world, rng, me = self._world, self._rng, self._peer
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(rng.random()), self._lie)
        others = [peer for peer in self._others() if peer.up and not peer.stopped]
        if me.up and not me.stopped and others:
            rng.choice(self._lies(rng.choice(others)))()

    def _lies(self, victim: MoePeer) -> list[Callable[[], None]]:
        world, rng, me = self._world, self._rng, self._peer
        uid = rng.choice(world.uids)
        epoch = rng.choice((0, 1, _ABSURD))
        mine = offer_of(self._forged(uid), me.peer_id)
        unsigned = SnapshotOffer(mine.uid, epoch, 7, mine.root, me.peer_id, b"?" * 64)
        others = offer_of(State(uid, epoch, 7, forged=True), victim.peer_id)
        none = offer_of(State(ExpertUID("none", (7,)), epoch, 7, forged=True), me.peer_id)

        here = victim.experts[uid].epoch if uid in victim.experts else epoch

        def ask(message: Message) -> None:
            ControlCall(me, victim.peer_id, message, lambda answer: None).begin(world.keep_s)

        def call(of: ExpertUID, version: int | None) -> None:
            lie = ExpertCall(me, victim.peer_id, of, epoch, version, lambda answer: None)
            lie.begin(world.keep_s)

        def state() -> None:
            prefix = uid.prefixes[-1]
            no_place = rng.randrange(100, 60_000)  # a real one would withhold the expert
            lines = [Stated(uid.place[-1], _ABSURD), Stated(no_place, epoch)]
            if world.directory.available:
                world.records.write(me.peer_id, prefix, statement_bytes(lines))

        return [
            *(lambda message=message: ask(message) for message in (Keep(mine), HandOver(mine))),
            lambda: ask(Keep(rng.choice((unsigned, others, none)))),
            lambda: ask(HandOver(rng.choice((unsigned, others, none)))),
            lambda: call(uid, None),
            lambda: call(uid, rng.choice((0, _ABSURD))),
            lambda: call(ExpertUID("none", (7,)), None),
            lambda: ask(rng.choice((Average(str(uid), here, 99), ReplicaWanted(mine)))),
            lambda: ask(ReplicaOver(str(uid), here)),
            state,
        ]
