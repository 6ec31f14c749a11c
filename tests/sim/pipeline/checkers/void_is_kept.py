"""Void is a promise: what a member said it has not counted, and will not, it does not count; and trainers wait for it.

A microbatch moves from one member to another only when the first said void (or refused), was fenced, or is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from protocols.ids import PeerID
from protocols.ledger.tally import Attempt, Settled, Tally
from protocols.ledger.trainer import (
    AskStage,
    CallFailed,
    SettleAnswered,
)
from tests.sim.engine.checker import on
from tests.sim.pipeline.checkers.checker import Checker
from tests.sim.pipeline.notes import CallEnded, Counted, Decided, SaidVoid

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

Place: TypeAlias = tuple[PeerID, int, int]
"""Trainer, microbatch, stage."""


class VoidIsKept(Checker):
    """Keeps every void that was said in the present step, and every question whose answer was lost."""

    promise = "void is kept"

    def __init__(self, world: PipelineWorld) -> None:
        super().__init__(world)
        self._voids: dict[tuple[Tally, int], Attempt] = {}
        self._unknown: dict[Place, tuple[int, int, PeerID, int, Attempt]] = {}

    # --- members ---

    @on(SaidVoid)
    def said_void(self, peer: PipelinePeer, what: SaidVoid) -> None:
        key = (peer.ledger.tally, what.microbatch)
        self._voids[key] = max(what.attempt, self._voids.get(key, what.attempt))

    @on(Counted)
    def counted(self, peer: PipelinePeer, what: Counted) -> None:
        ask = what.ask
        void = self._voids.get((peer.ledger.tally, ask.microbatch))
        if void is not None and ask.attempt <= void:
            raise self.broken(
                f"{peer.name} counts microbatch {ask.microbatch} of step {ask.step} under {ask.attempt}, "
                f"after it said that nothing up to {void} is counted"
            )

    @on(Decided)
    def decided(self, peer: object, what: Decided) -> None:
        for key in [key for key in self._voids if key[0].step <= what.record.step]:
            del self._voids[key]

    # --- trainers ---

    @on(AskStage)
    def asked(self, trainer: PipelinePeer, ask: AskStage) -> None:
        if not ask.count:
            return
        place = (trainer.peer_id, ask.microbatch, ask.stage)
        known = self._unknown.get(place)
        if known is None or known[:2] != (trainer.life, ask.step):
            return
        _, _, peer, since, attempt = known
        member = trainer.trainer._view.find(peer)
        if attempt.generation != ask.attempt.generation or member is None:
            return
        if member.since == since and member.stage == ask.stage:
            raise self.broken(
                f"{trainer.name} has microbatch {ask.microbatch} counted at stage {ask.stage} again, "
                f"not knowing whether {peer.decode()} did"
            )

    @on(CallEnded)
    def call_ended(self, trainer: PipelinePeer, what: CallEnded) -> None:
        """Note that an answer was lost, or what became of it."""
        ask, event = what.ask, what.event
        if isinstance(ask, AskStage):
            lost = isinstance(event, CallFailed) and event.code is None
            member = trainer.trainer._view.find(ask.peer)
            if ask.count and lost and member is not None:
                place = (trainer.peer_id, ask.microbatch, ask.stage)
                self._unknown[place] = (
                    trainer.life, ask.step, ask.peer, member.since, ask.attempt,
                )  # fmt: skip
        elif isinstance(event, SettleAnswered) and event.settled is not Settled.PENDING:
            for place, known in list(self._unknown.items()):
                settled = (known[2], known[4]) == (ask.peer, getattr(ask, "attempt", None))
                if place[0] == trainer.peer_id and settled:
                    del self._unknown[place]
