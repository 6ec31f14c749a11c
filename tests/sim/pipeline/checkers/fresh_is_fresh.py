"""What a lead deals as fresh, nobody has counted: its trainer does not ask the members first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.messages import Lease, Promise
from protocols.ledger.view import Ballot, Member, ids_of, unpack_ids
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


class FreshIsFresh(Checker):
    """Looks at each lease that is dealt for the newest record, unless somebody may lead it already with a higher ballot.

    What has been counted twice is in no step twice all the same (`exactly_once`): one of the two is fenced, and honest work
    is lost.
    """

    promise = "fresh is fresh"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._promised: tuple[int, Ballot] | None = None
        """Index of the newest record that anybody promised a ballot for, and the highest such ballot."""

    @on(Promise)
    def promised(self, peer: PipelinePeer, message: Promise) -> None:
        promised = message.index, message.ballot
        if self._promised is None or promised > self._promised:
            self._promised = promised

    @on(Lease)
    def leased(self, peer: PipelinePeer, message: Lease) -> None:
        newest, lead = self.world.newest_record, peer.ledger.lead
        if newest is None or lead is None or not message.fresh or message.index != newest.index:
            return
        if any(liar in self.world.peers for liar in self.world.liars):
            return  # members that lie count what they like
        if self._promised is not None and self._promised > (newest.index + 1, lead.ballot):
            return
        ids = unpack_ids(message.ids)
        for member in newest.members:
            twice = ids & self._counted_by(member, message.step)
            if twice:
                text = f"{peer.name} deals {ids_of(twice)} of step {message.step} as fresh"
                raise self.broken(f"{text}, which {member.peer.decode()} has counted")

    def _counted_by(self, member: Member, step: int) -> int:
        """Return what a member has counted, as far as that is not void."""
        peer = self.world.peers[member.peer]
        ledger = peer.ledger
        knows = ledger.record is not None and ledger.record.index >= member.since
        same = peer.up and ledger.incarnation == member.incarnation
        return ledger.tally.counted if same and knows and ledger.tally.step == step else 0
