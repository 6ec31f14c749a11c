"""What a lead says it waits for is so: people act on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.messages import Accepted
from protocols.ledger.view import Ballot, Member, Record
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld


class StatusIsTrue(Checker):
    """Reads the status of every lead now and then, and holds it against what really is.

    A lead knows less than the world does, so it may say that more is missing than is, and never less.
    """

    promise = "status is true"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._accepted: dict[tuple[int, Ballot], set[PeerID]] = {}
        self._says: tuple[tuple[str, Callable[[PipelinePeer, Record, str], bool]], ...] = (
            (r"a majority of the members to be heard", self._cut_off),
            (r"accepts from (\d+) members", self._accepts_missing),
            (r"(\d+) members to reduce", self._reductions_missing),
            (r"peers for stages \[(.+)\]", self._stages_are_bare),
            (r"more replicas before the first step", self._too_few_to_begin),
            (r"a peer that holds the state of stages \[.+\] at step (\d+)", self._step_is),
            (r"(\d+) microbatches", self._microbatches_missing),
        )

    @on(Accepted)
    def accepted(self, sender: PipelinePeer, message: Accepted) -> None:
        self._accepted.setdefault((message.index, message.ballot), set()).add(sender.peer_id)

    def looked(self) -> None:
        for peer in self.world.peers.values():
            if peer.up and not peer.stopped and peer.ledger.lead is not None:
                self._check(peer, peer.ledger.lead.waiting_for())

    def _check(self, peer: PipelinePeer, text: str) -> None:
        record = peer.ledger.record
        assert record is not None
        for pattern, is_so in self._says:
            found = re.fullmatch(pattern, text)
            if found is not None:
                if is_so(peer, record, found.group(1) if found.groups() else ""):
                    return
                break
        raise self.broken(f"{peer.name} says of record {record.index + 1} that it waits for {text}")

    def _cut_off(self, peer: PipelinePeer, record: Record, _: str) -> bool:
        return len(record.members) > 1

    def _accepts_missing(self, peer: PipelinePeer, record: Record, number: str) -> bool:
        assert peer.ledger.lead is not None
        accepted = self._accepted.get((record.index + 1, peer.ledger.lead.ballot), set())
        members = {member.peer for member in record.members}
        return len(members - accepted) <= int(number) <= len(members) and number != "0"

    def _reductions_missing(self, peer: PipelinePeer, record: Record, number: str) -> bool:
        busy = [m for m in record.members if self._has_yet_to_reduce(m)]
        return len(busy) <= int(number) <= len(record.members) and number != "0"

    def _has_yet_to_reduce(self, member: Member) -> bool:
        """One that died since then, or restarted, may well have reduced before (seed 110)."""
        peer = self.world.peers[member.peer]
        lives = peer.up and peer.ledger.incarnation == member.incarnation
        return lives and not peer.stage.finished

    def _stages_are_bare(self, peer: PipelinePeer, record: Record, stages: str) -> bool:
        bare = set(range(self.world.settings.stages)) - {m.stage for m in record.members}
        return {int(stage) for stage in stages.split(", ")} == bare

    def _too_few_to_begin(self, peer: PipelinePeer, record: Record, _: str) -> bool:
        stages = [member.stage for member in record.members]
        least = min(stages.count(stage) for stage in range(self.world.settings.stages))
        begins = record.step == self.world.first_step
        return begins and least < self.world.settings.replicas_to_start

    def _step_is(self, peer: PipelinePeer, record: Record, step: str) -> bool:
        return int(step) == record.step

    def _microbatches_missing(self, peer: PipelinePeer, record: Record, number: str) -> bool:
        """Count what no member of some stage has in its gradient, lying members aside."""
        if any(member.peer in self.world.liars for member in record.members):
            return True
        covered = [0] * self.world.settings.stages
        for member in record.members:
            ledger = self.world.peers[member.peer].ledger
            if ledger.tally.step != record.step + 1:
                return True  # it knows another record
            covered[member.stage] |= ledger.tally.counted
        everywhere = (1 << self.world.settings.microbatches) - 1
        for ids in covered:
            everywhere &= ids
        return int(number) >= self.world.settings.microbatches - everywhere.bit_count()
