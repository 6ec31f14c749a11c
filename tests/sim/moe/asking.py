"""Questions of one node to another: control messages, snapshots, and the calls of trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocols.experts.messages import Message, SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from tests.sim.engine.call import Call
from tests.sim.moe.state import State

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer

REFUSED: Final = "refused"
DRAINING: Final = "draining"
"""Refused by a node that leaves."""


class ControlCall(Call):
    """One message of the service `experts`. `done` gets the answer, REFUSED, DRAINING, or None when none came."""

    __slots__ = ("_done", "message", "served")
    asker: MoePeer

    def __init__(
        self, asker: MoePeer, target: PeerID, message: Message, done: Callable[[Any], None]
    ) -> None:
        super().__init__(asker.world, asker, target)
        self.message = message
        self._done = done
        self.served = False

    def serve(self, target: MoePeer) -> None:
        if not self.served:  # a stream carries its request once
            self.served = True
            target.answer(self.asker.peer_id, self.message, self.answer)

    def answered(self, what: Any) -> None:
        self._done(what)

    def failed(self) -> None:
        self._done(None)


class FetchCall(Call):
    """A snapshot by expert, epoch and version, as the service `state` gives it. `done` gets it, or None."""

    __slots__ = ("_done", "offer")
    asker: MoePeer

    def __init__(
        self,
        asker: MoePeer,
        target: PeerID,
        offer: SnapshotOffer,
        done: Callable[[State | None], None],
    ) -> None:
        super().__init__(asker.world, asker, target)
        self.offer = offer
        self._done = done

    def serve(self, target: MoePeer) -> None:
        target.later(
            target.world.fetch_s * target.slowness,
            lambda: self.answer(target.snapshot_at(self.offer, self.asker)),
        )

    def answered(self, what: State | None) -> None:
        self._done(what)

    def failed(self) -> None:
        self._done(None)


class ExpertCall(Call):
    """A forward or backward call. `done` gets (epoch, version), the code of a refusal, "wrong", or None."""

    __slots__ = ("_done", "epoch", "known_epoch", "served", "uid", "version")
    asker: MoePeer

    def __init__(
        self,
        asker: MoePeer,
        target: PeerID,
        uid: ExpertUID,
        epoch: int,
        version: int | None,
        done: Callable[[Any], None],
    ) -> None:
        super().__init__(asker.world, asker, target)
        self.uid, self.epoch, self.version = uid, epoch, version
        """`version` is None for a forward call."""
        claims = asker.view.claims(uid, asker.now_s)
        self.known_epoch = claims[0].epoch if claims else 0
        self._done = done
        self.served = False

    def serve(self, target: MoePeer) -> None:
        if not self.served:
            self.served = True
            target.compute_for(self)

    def answered(self, what: Any) -> None:
        self._done(what)

    def failed(self) -> None:
        self._done(None)
