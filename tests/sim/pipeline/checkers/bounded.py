"""No queue and no table of a core grows past its limit, and no record follows record without end, whatever peers send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.ledger.history import HISTORY_RECORDS
from protocols.ledger.leases import first_generation
from protocols.ledger.trainer import AskStage
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import Decided

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

_ALLOWANCE = 40
"""Strangers and former members that have been heard since they were last swept."""
_AT_ONCE = 8
"""Records in one instant. A lead that decides alone takes no time for it, so it must find nothing more to decide."""


class Bounded(Checker):
    """Reads the sizes of the cores' tables, now and then, and counts records. A topic is silent while members stay as they
    are, and nobody works under a lease that no lead can have dealt yet."""

    promise = "bounded"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._decided_s = -1.0
        self._at_once = 0
        self._changes = 0

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        record, before = what.record, what.before
        if before is None or record.members != before.members:
            self._changes += 1
        now_s = self.world.clock.now_s
        self._at_once = self._at_once + 1 if now_s == self._decided_s else 1
        self._decided_s = now_s
        if self._at_once > _AT_ONCE:
            raise self.broken(f"{record.lead.decode()} has record follow record, without end")

    @on(AskStage)
    def asked(self, trainer: PipelinePeer, ask: AskStage) -> None:
        newest = self.world.newest_record
        if isinstance(ask, AskStage) and newest is not None:
            no_lead_yet = first_generation(newest.index + 2, 0)
            self._check(trainer.name, "for its generation", ask.attempt.generation, no_lead_yet)

    def looked(self) -> None:
        settings = self.world.settings
        ids = settings.microbatches + settings.evaluation_microbatches
        peers = len(self.world.peers) + len(self.world.liars) + _ALLOWANCE
        for author, count in self.world.topic.published.items():
            self._check(author.decode(), "rumours", count, self._changes)
        for peer in self.world.peers.values():
            if not peer.up:
                continue
            ledger, trainer = peer.ledger, peer.trainer
            self._check(peer.name, "history", len(ledger._history), HISTORY_RECORDS)
            self._check(peer.name, "pulse", len(ledger._pulse), peers)
            self._check(peer.name, "attempts", len(ledger.tally._floors), settings.microbatches)
            self._check(peer.name, "counting", len(ledger.tally._counting), settings.microbatches)
            self._check(peer.name, "contacts", len(ledger._contacts), 256)
            self._check(peer.name, "spreaders", len(ledger._gossip.spreaders), 16)
            self._check(peer.name, "journeys", len(trainer.journeys), ids)
            self._check(peer.name, "calls", len(trainer._calls), ids * (1 + len(trainer._view)))
            self._check(peer.name, "replay", peer.stage.steps_kept, 8)
            if ledger.lead is not None:
                lead = ledger.lead
                self._check(peer.name, "reports", len(lead._reports), len(ledger.view))
                self._check(peer.name, "newcomers", len(lead._newcomers), peers)
                self._check(peer.name, "trainers", len(lead._trainers), peers)
                self._check(peer.name, "leases", len(lead.leases._held), peers)
                self._check(peer.name, "dealt", len(lead.leases._dealt), ids)
                self._check(
                    peer.name, "evaluated", len(lead.evaluated), settings.evaluation_microbatches
                )

    def _check(self, who: str, what: str, size: int, limit: int) -> None:
        if size > limit:
            raise self.broken(f"{who} has {size} {what}, more than {limit}")
