"""What is known of an expert outlives its host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from protocols.core import Blame
from protocols.experts.events import (
    Adopt,
    ClaimsSeen,
    Create,
    HandedOver,
    HandOverOffered,
    HandOverTo,
    Hosted,
    OffersFound,
)
from protocols.experts.messages import SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.moe.checkers.checker import Checker, Life, TenureChecker, life_of
from tests.sim.moe.notes import Faulted, SnapshotStored

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_REACHED_S: Final = 20.0
"""Who could be reached all this time would have been asked with success."""
_FRESH_S: Final = 20.0
_SLOW: Final = 2.0
"""A node that computes so slowly has more calls waiting than it can answer, and its snapshots wait among them."""


class NothingIsLost(TenureChecker):
    """No expert that was trained begins anew while a node that can be reached keeps a snapshot of it."""

    promise = "nothing is lost"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._since_s: dict[tuple[PeerID, PeerID], float] = {}
        """Since when two nodes have reached each other, as far as was seen."""
        self._lives: dict[PeerID, tuple[int, float]] = {}
        self._kept_s: dict[tuple[Life, ExpertUID], float] = {}

    def looked(self) -> None:
        world, now_s = self.world, self.world.clock.now_s
        peers = [peer for peer in self.up() if not peer.stopped]
        reached = {
            (a.peer_id, b.peer_id)
            for a in peers
            for b in peers
            if world.network.reaches(a.peer_id, b.peer_id)
            and world.network.reaches(b.peer_id, a.peer_id)
        }
        slow = world.network.slow
        self._since_s = {
            pair: self._since_s.get(pair, now_s)
            for pair in reached
            if pair[0] not in slow and pair[1] not in slow
        }
        for peer in peers:
            for uid, state in peer.kept.items():
                if state.version and not state.forged:
                    self._kept_s.setdefault((life_of(peer), uid), now_s)
        lives = {peer.peer_id: peer.life for peer in peers}
        self._lives = {
            peer: (life, self._lives[peer][1])
            if self._lives.get(peer, (-1, 0.0))[0] == life
            else (life, now_s)
            for peer, life in lives.items()
        }

    @on(Create)
    def creates(self, peer: MoePeer, effect: Create) -> None:
        now_s, enough_s = self.world.clock.now_s, self.world.scaled(_REACHED_S)
        for other in self.up():
            state = other.kept.get(effect.uid)
            if state is None or state.forged or other.stopped or other.left or not state.version:
                continue
            if now_s - self._kept_s.get((life_of(other), effect.uid), now_s) < enough_s:
                continue
            if other is not peer:
                since_s = self._since_s.get((peer.peer_id, other.peer_id), now_s)
                began_s = self._lives.get(other.peer_id, (0, now_s))[1]
                own_s = self._lives.get(peer.peer_id, (0, now_s))[1]
                if now_s - max(since_s, began_s, own_s) < enough_s:
                    continue
                if other.peer_id in self.world.liars or other.peer_id not in peer.rooms:
                    continue
            raise self.broken(
                f"{peer.name} begins {effect.uid} anew, while {other.name} keeps version {state.version}"
            )


class OnlyWhatAHostSigned(TenureChecker):
    """An expert goes on only from what its host signed while it had it; an orphan from a host's that its adopter saw, if any."""

    promise = "only what a host signed"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._seen: dict[tuple[Life, ExpertUID], set[tuple[int, PeerID]]] = {}
        self._offers: dict[tuple[Life, ExpertUID], list[SnapshotOffer]] = {}
        self._given: dict[tuple[Life, ExpertUID], SnapshotOffer] = {}
        self._successors: dict[tuple[Life, ExpertUID, int], PeerID] = {}

    @on(ClaimsSeen)
    def sees(self, peer: MoePeer, event: ClaimsSeen) -> None:
        for uid, claims in event.claims.items():
            seen = self._seen.setdefault((life_of(peer), uid), set())
            for claim in claims[:1]:  # anybody can state an older epoch beside the rightful host
                seen.add((claim.epoch, claim.peer))

    @on(Hosted)
    def hosts(self, peer: MoePeer, event: Hosted) -> None:
        self._seen.setdefault((life_of(peer), event.uid), set()).add((event.epoch, peer.peer_id))

    @on(HandOverTo)
    def hands_over(self, peer: MoePeer, effect: HandOverTo) -> None:
        self._successors[life_of(peer), effect.uid, effect.epoch] = effect.peer

    @on(HandedOver)
    def handed_over(self, peer: MoePeer, event: HandedOver) -> None:
        """Who has taken it says in which epoch: that counts as seen."""
        to = self._successors.pop((life_of(peer), event.uid, event.epoch), None)
        if event.taken and to is not None:
            self._seen.setdefault((life_of(peer), event.uid), set()).add((event.successor, to))

    @on(HandOverOffered)
    def is_offered(self, peer: MoePeer, event: HandOverOffered) -> None:
        self._given[life_of(peer), event.uid] = event.offer

    @on(OffersFound)
    def finds(self, peer: MoePeer, event: OffersFound) -> None:
        self._offers[life_of(peer), event.uid] = [offer for _, offer in event.offers]
        self._given.pop((life_of(peer), event.uid), None)

    @on(Adopt)
    def adopts(self, peer: MoePeer, effect: Adopt) -> None:
        offer, key = effect.offer, (life_of(peer), effect.uid)
        tenure = self.tenures.get(effect.uid, {}).get(offer.epoch)
        if tenure is None or tenure.host != offer.host:
            raise self.broken(f"{peer.name} adopts {offer}, whose signer never had that epoch")
        offers, seen = self._offers.pop(key, None), self._seen.get(key, set())
        found = peer.found.seen.get(effect.uid, ())
        seen = seen | {(host.epoch, host.host) for host in found}
        if self._given.get(key) == offer:
            self._takes_over(peer, effect)
            return
        good = [o for o in offers or () if (o.epoch, o.host) in seen or o.host == peer.peer_id]
        kept = peer.shelf.offers.get(effect.uid)
        if good and offer not in good and offer != kept:
            raise self.broken(f"{peer.name} adopts {offer}; a host that it saw signed {good}")

    def _takes_over(self, peer: MoePeer, effect: Adopt) -> None:
        honest = effect.offer.host not in self.world.liars
        claims = (peer.core._claims or {}).get(effect.uid, ())
        if not honest and not any(claim.peer == effect.offer.host for claim in claims):
            raise self.broken(f"{peer.name} takes {effect.uid} from who never had it")


class KeptIsGenuine(TenureChecker):
    """A keeper keeps only what a host signed of an epoch in which it had the expert: so an honest keeper is a witness."""

    promise = "kept is genuine"

    @on(SnapshotStored)
    def stores(self, peer: MoePeer, note: SnapshotStored) -> None:
        offer = peer.shelf.offers[note.uid]
        tenure = self.tenures.get(note.uid, {}).get(offer.epoch)
        if tenure is None or tenure.host != offer.host:
            raise self.broken(f"{peer.name} keeps {note.state} of {offer.host.decode()}")


class CopiesAreClose(Checker):
    """Once faults have ended, a node beside its host keeps a snapshot of each expert that is not much older than it is."""

    promise = "copies are close"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._stepped: dict[tuple[ExpertUID, int], list[tuple[float, int]]] = {}

    def looked(self) -> None:
        world, now_s = self.world, self.world.clock.now_s
        if world.healed_s is None:
            return
        late_s = world.scaled(_FRESH_S) + world.snapshot_every_s
        several = {uid for uid, hosts in world.hosts().items() if len(hosts) > 1}
        for key in [key for key in self._stepped if key[0] in several]:
            del self._stepped[key]  # the one that gives way finds no keeper
        for host in self.up():
            for uid, expert in host.experts.items():
                past = self._stepped.setdefault((uid, expert.epoch), [])
                past.append((now_s, expert.version))
                then = [version for at_s, version in past if now_s - at_s >= late_s]
                if (
                    then
                    and host.slowness < _SLOW
                    and len(world.staying) > 1
                    and host in world.staying
                ):
                    self._compare(host, uid, expert.epoch, then[-1])

    def _compare(self, host: MoePeer, uid: ExpertUID, epoch: int, version: int) -> None:
        kept = [other.kept[uid] for other in self.up() if uid in other.kept and other is not host]
        if not any((state.epoch, state.version) >= (epoch, version) for state in kept):
            raise self.broken(
                f"{uid} of {host.name} had {version} steps a while ago; kept are {kept}"
            )


class NobodyHonestBlamed(Checker):
    """The world knows who lies."""

    promise = "nobody honest blamed"

    @on(Faulted)
    def faults(self, by: MoePeer, note: Faulted) -> None:
        self._check(by, note.target, note.reason)

    @on(Blame)
    def blamed(self, by: MoePeer, blame: Blame) -> None:
        self._check(by, blame.peer, blame.reason)

    def _check(self, by: MoePeer, peer: PeerID, reason: Any) -> None:
        if peer not in self.world.liars:
            raise self.broken(f"{by.name} blamed {peer.decode()}: {reason}")
