"""Nobody honest is blamed, whatever the network does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.core import Blame
from protocols.ledger.messages import Accept
from protocols.ledger.view import Record
from protocols.schema import SchemaError, decode, encode
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


class NobodyHonestBlamed(Checker):
    """The world knows who lies. What an honest lead proposes must survive the wire, or its receivers would blame it."""

    promise = "nobody honest blamed"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._checked: Record | None = None

    @on(Blame)
    def blamed(self, by: PipelinePeer, blame: Blame) -> None:
        if blame.peer not in self.world.liars | self.world.forgers:
            raise self.broken(f"{by.name} blamed {blame.peer.decode()}: {blame.reason}")

    @on(Accept)
    def accept_asked(self, sender: PipelinePeer, message: Accept) -> None:
        record = message.record
        if record.commits_step and record is not self._checked:
            self._checked = record
            try:
                decode(Record, encode(record))
            except SchemaError as error:
                raise self.broken(f"{sender.name} proposes what is no record: {error}") from error
