"""What replicas may do, and that they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocols.experts.replicas import HOSTLESS_S, LOST_S, Appoint
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.moe.checkers.checker import Checker, Life, life_of
from tests.sim.moe.notes import Blended

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_ROOM_S: Final = 6.0
_ROUND_S: Final = 30.0
"""A few looks into the directory, averagings and measurements, on a slow network."""


class OnlyReplicasBlend(Checker):
    """Nobody's copy gets into an expert but that of a node which the host itself asked to be its replica, in this epoch."""

    promise = "only replicas blend"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._appointed: set[tuple[Life, ExpertUID, int, PeerID]] = set()

    @on(Appoint)
    def appoints(self, peer: MoePeer, effect: Appoint) -> None:
        self._appointed.add((life_of(peer), effect.uid, effect.epoch, effect.peer))

    @on(Blended)
    def blends(self, peer: MoePeer, note: Blended) -> None:
        if (life_of(peer), note.uid, note.epoch, note.source) not in self._appointed:
            raise self.broken(f"{peer.name} blends {note.uid} with {note.source.decode()}")


class ReplicasAreFew(Checker):
    """No expert has more replicas than it may, no node answers for more than it has room for, and none for what it hosts."""

    promise = "replicas are few"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._over_s: dict[Life, float] = {}

    def looked(self) -> None:
        for peer in self.up():
            core, shell = peer.replicas.core, peer.replicas
            for uid, own in core.own.items():
                if len(own.heard_s) > core.each + 1:
                    raise self.broken(f"{uid} has {len(own.heard_s)} replicas")
            if shell.serving.keys() != core.serving.keys():
                raise self.broken(f"{peer.name} serves {len(shell.serving)} of {len(core.serving)}")
            if shell.serving.keys() & peer.experts.keys():
                raise self.broken(f"{peer.name} is a replica of what it hosts")
            self._look_at_room(peer)

    def _look_at_room(self, peer: MoePeer) -> None:
        """Hosting goes before: what is beyond the room when experts come is given up within a few measurements."""
        total = len(peer.experts) + len(peer.replicas.serving)
        if total <= peer.room or not peer.replicas.serving or peer.stopped:
            self._over_s.pop(life_of(peer), None)
            return
        since_s = self._over_s.setdefault(life_of(peer), peer.now_s)
        if peer.now_s - since_s > _ROOM_S:
            raise self.broken(f"{peer.name} has {total} experts and replicas, room for {peer.room}")


class ReplicasFollow(Checker):
    """Once faults have ended, each replica is one of the expert's own host and epoch, and each that is named is there."""

    promise = "replicas follow their host"

    def looked(self) -> None:
        world = self.world
        if world.healed_for_s < HOSTLESS_S + LOST_S + world.records.lifetime_s + world.scaled(
            _ROUND_S
        ):
            return
        for peer in self.up():
            for uid, serving in peer.replicas.core.serving.items():
                host = world.peers.get(serving.host)
                epoch = (
                    host.experts[uid].epoch if host and host.up and uid in host.experts else None
                )
                if epoch != serving.epoch:
                    raise self.broken(f"{peer.name} still is a replica of {uid} in {serving.epoch}")
            for uid, names in peer.replicas.named.items():
                for name in names:
                    replica = world.peers[name]
                    if not replica.up or uid not in replica.replicas.serving:
                        raise self.broken(f"{peer.name} still names {replica.name} for {uid}")
