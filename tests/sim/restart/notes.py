"""What the model of the run says, for checkers."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.ledger.view import Record


@dataclass(frozen=True, slots=True)
class Decided:
    """The members of an epoch decided this record."""

    record: Record
