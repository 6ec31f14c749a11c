"""One node's replicas in the simulator: the real core, and copies that only count their steps. See moe.replicating."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocols.core import DrainWanted
from protocols.experts.messages import (
    Average,
    Averaged,
    Message,
    ReplicaOver,
    ReplicaWanted,
    SnapshotOffer,
    Taken,
)
from protocols.experts.replicas import (
    Appoint,
    Appointed,
    AverageAsked,
    AverageOver,
    AverageWith,
    Event,
    Measured,
    Name,
    Offered,
    RefuseReplica,
    Release,
    Released,
    Replicas,
    Replicate,
    Replicated,
    RightfulSeen,
    StopServing,
)
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.moe.asking import REFUSED, ControlCall, FetchCall
from tests.sim.moe.notes import Blended, ExpertStepped
from tests.sim.moe.state import Held, HostedExpert, State

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer

_MEASURED_S: Final = 1.0
_RELEASE_S: Final = 3.0


class ReplicaShell:
    """What a node does for replicas, in one of its lives."""

    def __init__(self, peer: MoePeer) -> None:
        world = peer.world
        self._peer = peer
        self.core = Replicas(
            peer.peer_id, world.replicas, popular=0.5, average_s=world.scaled(2.0)
        )  # fmt: skip
        self.serving: dict[ExpertUID, HostedExpert] = {}
        self.named: dict[ExpertUID, tuple[PeerID, ...]] = {}
        self._replies: dict[ExpertUID, Callable[[Any], None]] = {}
        peer.begin(self.core)
        self._measure()

    def feed(self, event: Event) -> None:
        self._peer.drive(self.core, event)

    def _measure(self) -> None:
        peer = self._peer
        own = peer.core.hosting
        shares = {uid: peer.world.share_of_time(uid) for uid in own}
        self.feed(Measured(peer.now_s, own, shares, peer.core.spare(), peer.core.free))
        peer.later(_MEASURED_S, self._measure)

    def claims_seen(self, claims: Any) -> None:
        self.feed(RightfulSeen(self._peer.now_s, claims))

    def hosted(self, uid: ExpertUID) -> None:
        """We host it ourselves from now on."""
        self.serving.pop(uid, None)
        self.core.forget(uid)

    def drain(self) -> None:
        self.feed(DrainWanted(self._peer.now_s))

    def do(self, effect: Any) -> None:
        match effect:
            case Appoint(uid):
                self._peer.snapshot(uid, lambda held: self._appoint(effect, held))
            case Name(replicas):
                self.named = dict(replicas)
                self._peer.announce()
            case Replicate(uid, offer):
                self._replicate(uid, offer)
            case RefuseReplica(uid):
                self._reply(uid, taken=False)
            case AverageWith(uid, epoch, host):
                self._average(uid, epoch, host)
            case StopServing(uid, epoch):
                if uid in self.serving and self.serving[uid].epoch == epoch:
                    del self.serving[uid]
            case Release(uid, epoch, peer):
                over = ReplicaOver(str(uid), epoch)
                self._call(peer, over, self._peer.world.scaled(_RELEASE_S), lambda answer: None)

    def _call(
        self, peer: PeerID, message: Message, deadline_s: float, done: Callable[[Any], None]
    ) -> None:
        ControlCall(self._peer, peer, message, done).begin(deadline_s)

    # --- as a host ---

    def _appoint(self, appoint: Appoint, held: Held | None) -> None:
        def answered(answer: Any) -> None:
            taken = isinstance(answer, Taken) and answer.taken
            self.feed(Appointed(self._peer.now_s, appoint, taken))

        if held is None or held.offer.epoch != appoint.epoch:
            answered(None)
        else:
            wanted = ReplicaWanted(held.offer)
            self._call(appoint.peer, wanted, self._peer.world.keep_s, answered)

    def average(self, source: PeerID, message: Average, reply: Callable[[Any], None]) -> None:
        """Blend a replica's copy into ours, after what waits on the compute thread."""
        peer, uid, epoch = self._peer, ExpertUID.from_text(message.uid), message.epoch
        expert = peer.experts.get(uid)
        if expert is None or expert.epoch != epoch or not self.core.is_replica(uid, epoch, source):
            reply(REFUSED)
            return
        if expert.frozen or not self.core.admits(uid, source, peer.now_s):
            reply(None)
            return
        peer.note(Blended(uid, epoch, source))

        def blended(done: bool) -> None:
            if message.rows and peer.experts.get(uid) is expert:
                expert.version += 1
                peer.note(ExpertStepped(uid, epoch, expert.version, epoch))
            self.feed(AverageAsked(peer.now_s, uid, source))
            reply(Averaged(epoch))

        peer.compute.submit(peer.world.step_s * peer.slowness, lambda: True, blended)

    # --- as a replica ---

    def offered(
        self, source: PeerID, uid: ExpertUID, offer: SnapshotOffer, reply: Callable[[Any], None]
    ) -> None:
        """Answer a host that wants us as its replica."""
        if uid in self._replies:
            reply(REFUSED)
            return
        self._replies[uid] = reply
        self.feed(Offered(self._peer.now_s, source, uid, offer))

    def released(self, source: PeerID, message: ReplicaOver) -> None:
        self.feed(Released(source, ExpertUID.from_text(message.uid), message.epoch))

    def _reply(self, uid: ExpertUID, *, taken: bool) -> None:
        if (reply := self._replies.pop(uid, None)) is not None:
            reply(Taken(taken))

    def _replicate(self, uid: ExpertUID, offer: SnapshotOffer) -> None:
        peer = self._peer

        def fetched(state: State | None) -> None:
            if state is None or state.root != offer.root:
                ended(False)
            else:
                build_s = peer.world.build_s * peer.slowness
                peer.compute.submit(build_s, lambda: True, lambda done: built(state))

        def built(state: State) -> None:
            free = uid not in peer.experts
            if free:
                replica = HostedExpert(uid, offer.epoch, state.version, forged=state.forged)
                self.serving[uid] = replica
            ended(free)

        def ended(done: bool) -> None:
            self.feed(Replicated(peer.now_s, uid, done))
            self._reply(uid, taken=done and uid in self.serving)

        FetchCall(peer, offer.host, offer, fetched).begin(peer.world.keep_s)

    def _average(self, uid: ExpertUID, epoch: int, host: PeerID) -> None:
        def answered(answer: Any) -> None:
            if answer == REFUSED:
                self.feed(Released(host, uid, epoch))
            heard = isinstance(answer, Averaged)
            self.feed(AverageOver(self._peer.now_s, uid, epoch, heard))

        rows = self._peer.rng.randint(0, 3)
        self._call(host, Average(str(uid), epoch, rows), self._peer.world.keep_s, answered)
