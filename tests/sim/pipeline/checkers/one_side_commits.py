"""Of two sides of a partition at most one goes on: whatever is decided, a quorum of the members before it accepted it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.messages import Accept, Accepted, Promise
from protocols.ledger.view import Ballot, Member, Record
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


def is_quorum(peers: set[PeerID], members: tuple[Member, ...]) -> bool:
    """Decide without the cores: more than half, or half and the smallest PeerID."""
    names = {member.peer for member in members}
    if not names:
        return False
    present = len(names & peers)
    return 2 * present > len(names) or (2 * present == len(names) and min(names) in peers)


class OneSideCommits(Checker):
    """Counts the accepts of every ballot by itself; watches that promises are kept and no ballot names two records."""

    promise = "one side commits"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._proposed: dict[tuple[int, Ballot], Record] = {}
        self._accepted: dict[tuple[int, Ballot], set[PeerID]] = {}
        self._promised: dict[tuple[int, PeerID], Ballot] = {}
        self._steps: dict[int, int] = {}

    @on(Accept)
    def accept_asked(self, sender: PipelinePeer, message: Accept) -> None:
        known = self._proposed.setdefault((message.index, message.ballot), message.record)
        if known is not message.record and known != message.record:
            raise self.broken(f"{sender.name} proposed two records under one ballot")

    @on(Promise)
    def promised(self, sender: PipelinePeer, message: Promise) -> None:
        key = (message.index, sender.peer_id)
        self._promised[key] = max(message.ballot, self._promised.get(key, message.ballot))

    @on(Accepted)
    def accepted(self, sender: PipelinePeer, message: Accepted) -> None:
        peer = sender.peer_id
        promise = self._promised.get((message.index, peer))
        if promise is not None and message.ballot < promise:
            raise self.broken(
                f"{peer.decode()} accepted {message.ballot} after it promised {promise}"
            )
        self._accepted.setdefault((message.index, message.ballot), set()).add(peer)

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        if before is None:
            return
        if (
            record.commits_step
            and self._steps.setdefault(record.step, record.index) != record.index
        ):
            raise self.broken(f"step {record.step} was committed twice")
        votes = [
            peers
            for (index, ballot), peers in self._accepted.items()
            if index == record.index and self._proposed.get((index, ballot)) == record
        ]
        if not any(is_quorum(peers, before.members) for peers in votes):
            most = max((len(peers) for peers in votes), default=0)
            raise self.broken(
                f"record {record.index} was accepted by {most} of {len(before.members)} members"
            )
        self._forget(record.index)

    def _forget(self, index: int) -> None:
        self._proposed = {key: value for key, value in self._proposed.items() if key[0] >= index}
        self._accepted = {key: value for key, value in self._accepted.items() if key[0] >= index}
        self._promised = {key: value for key, value in self._promised.items() if key[0] >= index}
