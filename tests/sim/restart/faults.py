"""The faults that only coming back has: power that goes everywhere, evenings on which all leave, disks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.epoch import begun_alone
from protocols.ledger.restart_messages import Running
from protocols.ledger.view import Fork, Member, Record
from tests.sim.engine.faults import Faults, Injector, count, never, share, source

if TYPE_CHECKING:
    from tests.sim.engine.peer import SimPeer
    from tests.sim.restart.peer import RestartPeer
    from tests.sim.restart.world import RestartWorld

_OUT_S = 12.0
"""Who lost power is back within so long, in any order."""
_TOGETHER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartFaults(Faults):
    """How much of each kind this run has."""

    restarts_without_state: int = count(1)
    topic_loss: float = never(0.0)
    topic_repeats: float = never(0.0)
    stale_directory: bool = never(False)
    unavailable_directory: bool = never(False)
    """Nothing is published, and members are known from the disk."""
    power_losses: int = count(3)
    """All nodes at once."""
    half_losses: int = count(3)
    """Half of them within ten seconds; they come back."""
    evenings: int = count(1)
    """All leave in good order, and come back."""
    damage: float = share(0.2)
    """Share of the checkpoints that are another file than the other replicas'."""
    full_disk: float = share(0.3)
    """Share of the votes that cannot be written."""
    damaged_votes: int = count(2)
    """Votes that cannot be read any more."""
    two_words: int = count(2)
    """Power goes everywhere, the network is split when it is back, and an operator on each side begins an epoch."""
    false_claims: int = count(4)
    """Somebody says that it is in a longer run, which there is not."""
    slow_disk: float = share(1.0)
    """Seconds that a vote takes to be written, at most."""


class RestartInjector(Injector):
    """Plans the faults of one run between 0 and `until_s`."""

    def __init__(self, world: RestartWorld, until_s: float) -> None:
        super().__init__(world, until_s)
        self._swarm = world

    def plan(self) -> None:
        super().plan()
        faults = self._swarm.faults
        for _ in range(faults.power_losses):
            self._some_time(self._power_loss, 1.0)
        for _ in range(faults.half_losses):
            self._some_time(self._power_loss, 0.5)
        for _ in range(faults.evenings):
            self._some_time(self._evening)
        self._plan_words()
        rng = source(self._swarm.seed, "which vote is damaged")
        for _ in range(faults.damaged_votes):
            at_s = rng.uniform(0, self._until_s)
            self._swarm.clock.after(at_s, self._damage_vote, rng)

    def _power_loss(self, part: float) -> None:
        world = self._swarm
        peers = sorted(world.peers.values(), key=lambda peer: peer.peer_id)
        chosen = self._rng.sample(peers, max(1, int(part * len(peers))))
        world.log(f"power goes: {','.join(peer.name for peer in chosen)}")
        spread_s = 0.0 if part == 1.0 else world.scaled(_TOGETHER_S)
        for peer in chosen:
            world.clock.after(spread_s * self._rng.random(), self._out, peer)

    def _out(self, peer: RestartPeer) -> None:
        if self._swarm.healed_s is not None:
            return
        self._crash(peer)
        back_s = self._swarm.scaled(_OUT_S * self._rng.random())
        self._swarm.clock.after(back_s, self._restart, peer, True)

    def _plan_words(self) -> None:
        seed, faults = self._swarm.seed, self._swarm.faults
        rng = source(seed, "when operators speak")
        for _ in range(faults.two_words):
            self._swarm.clock.after(rng.uniform(0, self._until_s), self._two_words, rng)
        rng = source(seed, "who claims what")
        for _ in range(faults.false_claims):
            for _ in range(10):
                self._swarm.clock.after(rng.uniform(0, self._until_s), self._claim_falsely, rng)

    def _two_words(self, rng: random.Random) -> None:
        """Each side has some of every stage, if there are enough."""
        world = self._swarm
        if world.healed_s is not None:
            return
        sides: tuple[list[PeerID], list[PeerID]] = ([], [])
        for stage in range(world.stages):
            replicas = [member.peer for member in world.head.view.replicas(stage)]
            rng.shuffle(replicas)
            for k, peer in enumerate(replicas):
                sides[k % 2].append(peer)
        links = [(a, b) for a in sides[0] for b in sides[1]]
        links += [(b, a) for a, b in links]
        world.network.cut(links)
        world.log(f"two operators: {','.join(peer.short for peer in sides[0])} and the others")
        for side in sides:
            for peer_id in side:
                self._crash(world.peers[peer_id])
                back_s = world.scaled(2.0 * rng.random())
                world.clock.after(back_s, self._restart, world.peers[peer_id], True)
            if side and rng.random() < 0.9:
                world.operator_spoke = True
                world.peers[rng.choice(side)].new_epoch = True
        world.clock.after(world.scaled(rng.uniform(10.0, 60.0)), world.network.join, links)

    def _claim_falsely(self, rng: random.Random) -> None:
        """A stranger, or one of the same run, names itself a member of a run that is far ahead."""
        world = self._swarm
        told = [
            p for p in world.peers.values() if p.up and p.running is not None and p.running.forks
        ]
        if not told or world.healed_s is not None:
            return
        peer = rng.choice(sorted(told, key=lambda peer: peer.peer_id))
        ours = peer.running
        assert ours is not None
        absent = {found for fork in ours.forks for found in fork.absent}
        liars = [PeerID(b"stranger"), *sorted(set(ours.view) - absent - {peer.peer_id})]
        liar = rng.choice(liars)
        member = Member(liar, 1, 0, ours.index)
        fork = Fork(epoch=begun_alone(0, rng), after=0, step=1, absent=(peer.peer_id,))
        record = Record(
            index=ours.index + 9, epoch=fork.epoch, forks=(fork,), step=ours.step + 1000, lead=liar,
            members=(member,),
        )  # fmt: skip
        world.log(f"{liar.short} claims to be far ahead: {peer.name}")
        world.forge(liar, peer.peer_id, Running(record))

    def _damage_vote(self, rng: random.Random) -> None:
        voted = [peer for peer in self._swarm.peers.values() if peer.disk.vote is not None]
        if voted:
            peer = rng.choice(sorted(voted, key=lambda peer: peer.peer_id))
            self._swarm.log(f"vote damaged: {peer.name}")
            peer.disk.damaged = True
            peer.disk.lives += 1

    def _evening(self) -> None:
        world = self._swarm
        world.log("evening: all leave")
        for peer in list(world.peers.values()):
            if peer.up and not peer.draining:
                peer.comes_back = True
                world.clock.after(world.scaled(3.0 * self._rng.random()), self._leave, peer)
                back_s = world.scaled(15.0 + _OUT_S * self._rng.random())
                world.clock.after(back_s, self._restart, peer, True)

    def _crash(self, peer: SimPeer) -> None:
        if self._swarm.healed_s is None:  # what a mass preemption begins may be due after its end
            super()._crash(peer)

    def _leave(self, peer: SimPeer) -> None:
        if self._swarm.healed_s is None:  # else it was told to leave when all was well again
            super()._leave(peer)
