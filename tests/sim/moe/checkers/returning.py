"""What a node does with what it finds on its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from protocols.experts.events import (
    Adopt,
    ClaimsSeen,
    Create,
    HandedOver,
    HandOverOffered,
    HandOverTo,
)
from protocols.experts.returning import RETURN_S
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.moe.checkers.checker import Checker, Life, TenureChecker, life_of
from tests.sim.moe.notes import HostingBegun, HostingEnded

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_KNOWN_S: Final = 20.0
"""A host of so long is in the directory, unless that is out, and stale views have been renewed."""
_EPS_S: Final = 1e-3


class LeftToItsHost(Checker):
    """Who finds a run on its disk begins nothing anew, and adopts nothing of others, before those had a minute to come back."""

    promise = "left to its host"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._alive: set[tuple[Life, ExpertUID]] = set()

    @on(ClaimsSeen)
    def sees(self, peer: MoePeer, event: ClaimsSeen) -> None:
        for uid, claims in event.claims.items():
            before = {host.epoch for host in peer.found.seen.get(uid, ())}
            if claims[0].epoch not in before:  # else it may be of who died as well
                self._alive.add((life_of(peer), uid))

    @on(HandOverOffered)
    def is_offered(self, peer: MoePeer, event: HandOverOffered) -> None:
        self._alive.add((life_of(peer), event.uid))

    @on(HostingBegun)
    def hosts(self, peer: MoePeer, note: HostingBegun) -> None:
        self._alive.add((life_of(peer), note.uid))

    @on(Create)
    def creates(self, peer: MoePeer, effect: Create) -> None:
        self._check(peer, effect)

    @on(Adopt)
    def adopts(self, peer: MoePeer, effect: Adopt) -> None:
        if effect.offer.host != peer.peer_id:
            self._check(peer, effect)

    def _check(self, peer: MoePeer, effect: Any) -> None:
        found = bool(peer.found.held or peer.found.seen)
        early = peer.now_s - peer.booted_s < RETURN_S - _EPS_S
        if found and early and (life_of(peer), effect.uid) not in self._alive:
            raise self.broken(f"{peer.name} says {effect} so soon after it came back")


class TakesBackTheNewest(TenureChecker):
    """An expert that is taken back knows at least what was on the disk, whose node was the last host that it had seen, and no
    less than a copy that goes on elsewhere.
    """

    promise = "takes back the newest"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._began_s: dict[tuple[ExpertUID, int], float] = {}
        self._offered: dict[tuple[PeerID, ExpertUID, int], PeerID] = {}
        self._given: dict[tuple[PeerID, ExpertUID], int] = {}
        """What was handed over to an honest node: in which epoch of who gave it."""
        self._apart_s = -1e9
        """When the directory was last out, or nodes cut off."""

    def looked(self) -> None:
        world = self.world
        if not world.directory.available or world.network.cuts:
            self._apart_s = world.clock.now_s

    @on(HostingBegun)
    def begins(self, peer: MoePeer, note: HostingBegun) -> None:
        super().begins(peer, note)
        self._began_s[note.uid, note.epoch] = self.world.clock.now_s
        if peer.core._busy.get(note.uid) != "take back":
            return
        origin = note.origin
        held = peer.found.held[note.uid]
        if origin is None or (origin.epoch, origin.version) < held.offer.age:
            raise self.broken(f"{peer.name} takes {note.uid} back as {origin}, and had {held}")
        if origin.epoch <= self._given.get((peer.peer_id, note.uid), -1):
            raise self.broken(f"{peer.name} takes {note.uid} back, which it had handed over")
        last = max((host.epoch for host in peer.found.seen.get(note.uid, ())), default=0)
        if origin.epoch < last:
            raise self.broken(
                f"{peer.name} takes {note.uid} back, whose host in {last} it had seen"
            )
        for other in self.up():
            copy = other.experts.get(note.uid)
            if copy is not None and other is not peer and not self._is_new(other, note.uid):
                self._compare(note, other, copy.epoch, copy.version)

    @on(HandOverTo)
    def offers(self, peer: MoePeer, effect: HandOverTo) -> None:
        self._offered[peer.peer_id, effect.uid, effect.epoch] = effect.peer

    @on(HandedOver)
    def handed_over(self, peer: MoePeer, event: HandedOver) -> None:
        to = self._offered.pop((peer.peer_id, event.uid, event.epoch), None)
        if event.taken and to not in self.world.liars:
            self._given[peer.peer_id, event.uid] = event.epoch

    def _is_new(self, other: MoePeer, uid: ExpertUID) -> bool:
        """Tell whether the directory, or who has just come back, may not know of this copy."""
        now_s, epoch = self.world.clock.now_s, other.experts[uid].epoch
        since_s = max(self._began_s[uid, epoch], self._apart_s)
        known_s = self.world.scaled(_KNOWN_S) + 5.0
        slow = self.world.slow_looks or self.world.faults.stale_directory
        return bool(slow) or now_s - since_s < known_s or other.stopped

    def _compare(self, note: HostingBegun, other: MoePeer, epoch: int, version: int) -> None:
        tenure = self.tenures[note.uid].get(epoch)
        begun_anew = tenure is not None and tenure.origin is None
        if tenure is None or begun_anew or other.peer_id in self.world.liars:
            return
        assert note.origin is not None
        if epoch > note.origin.epoch and version > note.origin.version:
            raise self.broken(
                f"{note.uid} is taken back as {note.origin}; {other.name} has it with {version} steps"
            )


class GoesOnWhereItWas(Checker):
    """When power goes everywhere, and nothing worse happens, each expert goes on with no fewer steps than its host had on disk."""

    promise = "goes on where it was"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._had: dict[ExpertUID, tuple[int, int]] = {}
        """Epoch and version."""

    @on(HostingEnded)
    def ends(self, peer: MoePeer, note: HostingEnded) -> None:
        held = peer.disk.held.get(note.uid)
        died = note.uid in peer.core.hosting  # else it was given away
        if died and held is not None and held.offer.epoch == note.epoch:
            self._had[note.uid] = max(held.offer.age, self._had.get(note.uid, (0, 0)))

    def ended(self) -> None:
        world = self.world
        if not world.faults.only_power_goes or world.scale > 1:
            return  # in slow worlds the last comes back when the first waits no longer
        for uid, hosts in world.hosts().items():
            epoch, version = self._had.get(uid, (0, 0))
            for host in hosts:
                if host.experts[uid].version < version:
                    raise self.broken(
                        f"{uid} had {version} steps on disk in epoch {epoch}; {host.name} has {host.experts[uid].state}"
                    )
