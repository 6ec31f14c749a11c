"""What the pipeline's world and simulated shell show the checkers besides the events, effects and messages of the cores.

Not frozen: some are made for each microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.ledger.tally import Attempt
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage, TrainerEvent
from protocols.ledger.view import Record


@dataclass(slots=True)
class Decided:
    """A peer is the first to learn a record; `before` is the one it follows."""

    record: Record
    before: Record | None


@dataclass(slots=True)
class StateReached:
    """A peer holds the state of a stage after this step."""

    stage: int
    step: int
    state: bytes


@dataclass(slots=True)
class GaveUp:
    """A peer is about to drop its stage's state, because a record let it leave or moved it."""


@dataclass(slots=True)
class Counted:
    """A member adds a microbatch to its gradient."""

    ask: AskStage


@dataclass(slots=True)
class SaidVoid:
    """A member told a trainer that no attempt up to this one counts here."""

    step: int
    microbatch: int
    attempt: Attempt


@dataclass(slots=True)
class CallEnded:
    """A trainer's question is answered, or given up; it has not been told yet."""

    ask: AskStage | AskSettle | AskClaim
    event: TrainerEvent
