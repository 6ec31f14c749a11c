"""Who hosts an expert, and which steps count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocols.experts.events import Drop, HandedOver, Left
from protocols.experts.returning import RETURN_S
from protocols.experts.uid import ExpertUID
from tests.sim.engine.checker import Progress, on
from tests.sim.moe.checkers.checker import Checker, Tenure, TenureChecker, life_of
from tests.sim.moe.notes import ExpertStepped, HostingBegun

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer

_ADOPTED_S: Final = 60.0
"""Beyond what the directory still names a dead host: seen missing, each former turn, asked, probed, fetched, built."""


class OneHostPerEpoch(TenureChecker):
    """No two copies of an expert ever have the same epoch, nor one host two; each copy's versions count its steps."""

    promise = "one host per epoch"

    def again(self, peer: MoePeer, note: HostingBegun, before: Tenure) -> None:
        raise self.broken(
            f"{peer.name} hosts {note.uid} in epoch {note.epoch}, as {before.host.decode()} did"
        )

    @on(ExpertStepped)
    def steps(self, peer: MoePeer, note: ExpertStepped) -> None:
        tenure = self.tenures[note.uid].get(note.epoch)
        if tenure is None or (tenure.host, tenure.life) != life_of(peer):
            raise self.broken(f"{peer.name} steps {note.uid} in another's epoch {note.epoch}")
        if note.version != tenure.version + 1:
            raise self.broken(f"{note.uid} goes from version {tenure.version} to {note.version}")
        tenure.version = note.version


class NoOlderSteps(Checker):
    """A caller that knows a newer epoch makes no older copy step."""

    promise = "no older steps"

    @on(ExpertStepped)
    def steps(self, peer: MoePeer, note: ExpertStepped) -> None:
        if note.epoch < note.known_epoch and peer.peer_id not in self.world.liars:
            raise self.broken(
                f"{peer.name} steps {note.uid} in epoch {note.epoch}; the caller knew {note.known_epoch}"
            )


class OneHostSoon(Checker):
    """Once faults have ended each expert has one host in bounded time: orphans are adopted, second hosts give way."""

    promise = "one host soon"

    def looked(self) -> None:
        world = self.world
        bound_s = world.records.lifetime_s + world.scaled(_ADOPTED_S)
        if any(peer.found.seen for peer in self.up()):
            bound_s += (
                RETURN_S  # it leaves what nobody has to its host, who may be about to come back
            )
        if world.healed_for_s < bound_s or world.lost() is not None:
            return
        goal = world.expected()
        hosts = world.hosts()
        alone = sum(len(of) == 1 for of in hosts.values())
        if alone < goal or any(len(of) > 1 for of in hosts.values()):
            odd = {str(uid): [p.name for p in of] for uid, of in hosts.items() if len(of) != 1}
            raise self.broken(f"{world.healed_for_s:.0f} s after healing: {odd}")


class RoomIsKept(Checker):
    """A node hosts no more experts than it has room for, those that it builds among them."""

    promise = "room is kept"

    @on(HostingBegun)
    def begins(self, peer: MoePeer, note: HostingBegun) -> None:
        if len(peer.experts) > peer.room:
            raise self.broken(f"{peer.name} hosts {len(peer.experts)} with room for {peer.room}")


class HandOverLosesNothing(TenureChecker):
    """Who drops an expert as handed over has a successor that began with all its steps; who leaves has given away what it could."""

    promise = "a hand-over loses nothing"

    @on(HandedOver)
    def handed_over(self, peer: MoePeer, event: HandedOver) -> None:
        epoch, expert = event.epoch, peer.experts.get(event.uid)
        if not event.taken or expert is None or expert.epoch != epoch:
            return
        steps = expert.version
        successors = [
            tenure
            for of, tenure in self.tenures[event.uid].items()
            if of > epoch and tenure.origin is not None and tenure.origin.epoch == epoch
        ]
        if not any(tenure.origin and tenure.origin.version == steps for tenure in successors):
            raise self.broken(f"{peer.name} gives {event.uid} away, and its {steps} steps with it")

    @on(Drop)
    def drops(self, peer: MoePeer, effect: Drop) -> None:
        if effect.reason == "handed over" and not any(
            epoch > peer.experts[effect.uid].epoch for epoch in self.tenures[effect.uid]
        ):
            raise self.broken(f"{peer.name} drops {effect.uid}, which nobody else has had since")

    @on(Left)
    def leaves(self, peer: MoePeer, effect: Left) -> None:
        alone = [uid for uid in peer.experts if not self._is_safe(peer, uid)]
        takers = [
            other
            for other in self.up()
            if other.peer_id in peer.rooms
            and other.peer_id not in peer.core.roster.down
            and len(other.experts) < other.room
            and not (other.stopped or other.draining)
        ]
        if alone and takers and not self.world.liars:
            raise self.broken(f"{peer.name} leaves with {[str(uid) for uid in alone]}")

    def _is_safe(self, peer: MoePeer, uid: ExpertUID) -> bool:
        """Tell whether somebody keeps it, or has a newer epoch."""
        epoch = peer.experts[uid].epoch
        keeps = any(
            other is not peer and uid in other.kept and other.kept[uid].epoch >= epoch
            for other in self.up()
        )
        return keeps or any(of > epoch for of in self.tenures[uid])


class ExpertsSettle(Progress):
    """Liveness: once faults end, each expert has one host, and all name it."""

    promise = "experts settle"
