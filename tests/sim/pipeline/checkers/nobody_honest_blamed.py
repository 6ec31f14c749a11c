"""Nobody honest is blamed, whatever the network does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.messages import Accept
from protocols.ledger.view import Record
from protocols.schema import SchemaError, decode, encode
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import SimPeer
    from tests.sim.pipeline.world import World


class NobodyHonestBlamed(Checker):
    """The world knows who lies. What an honest lead proposes must survive the wire, or its receivers would blame it."""

    promise = "nobody honest blamed"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._checked: Record | None = None

    def blamed(self, by: SimPeer, peer: PeerID, reason: str) -> None:
        if peer not in self.world.liars | self.world.forgers:
            raise self.broken(f"{by.name} blamed {peer.decode()}: {reason}")

    def accept_asked(self, peer: PeerID, message: Accept) -> None:
        record = message.record
        if record.commits_step and record is not self._checked:
            self._checked = record
            try:
                decode(Record, encode(record))
            except SchemaError as error:
                raise self.broken(f"{peer.decode()} proposes what is no record: {error}") from error
