"""A node's disk: what it hosts and keeps, as it was when it was last written, and whom it saw as hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.uid import ExpertUID
from tests.sim.moe.state import Held, offer_of

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer

FORGET_S = 60.0
"""The daemon waits longer: runs here are short."""


@dataclass(slots=True)
class Disk:
    """All of it is there whole or not at all."""

    held: dict[ExpertUID, Held] = field(default_factory=dict)
    seen: dict[ExpertUID, Sequence[Seen]] = field(default_factory=dict)
    _held_s: dict[ExpertUID, float] = field(default_factory=dict)

    @property
    def offers(self) -> Mapping[ExpertUID, SnapshotOffer]:
        return {uid: held.offer for uid, held in self.held.items()}

    def copy(self) -> Disk:
        return Disk(dict(self.held), dict(self.seen), dict(self._held_s))

    def see(self, peer: MoePeer) -> None:
        """Write down whom it has seen."""
        self.seen = {uid: hosts for uid in peer.world.uids if (hosts := peer.core.seen(uid))}

    def write(self, peer: MoePeer) -> None:
        """Write what it holds now, and forget what it has not held for long."""
        now_s = peer.world.clock.now_s
        kept = {uid: Held(peer.shelf.offers[uid], state) for uid, state in peer.kept.items()}
        hosted = {
            uid: Held(offer_of(expert.state, peer.peer_id), expert.state)
            for uid, expert in peer.experts.items()
            if expert.version
        }
        for uid, held in (kept | hosted).items():
            self.held[uid] = held
            self._held_s[uid] = now_s
        late_s = now_s - peer.world.scaled(FORGET_S)
        for uid in [uid for uid, at_s in self._held_s.items() if at_s < late_s]:
            del self.held[uid], self._held_s[uid]
