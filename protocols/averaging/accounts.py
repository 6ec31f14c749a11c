"""How averaging under one key has gone: what a status shows, and when a person should look."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Account:
    """Rounds of one key.

    Args:
      unhealthy_after: rounds missed in a row.
    """

    unhealthy_after: int
    rounds: int = 0
    misses_in_a_row: int = 0
    last_finished_s: float | None = None
    aborted: Counter[str] = field(default_factory=Counter)
    """By reason; the reasons are ours, and few."""
    invitations_refused: int = 0
    """To groups that nobody was asked for."""

    def finished(self, now_s: float) -> None:
        """A round has averaged our vector."""
        self.rounds += 1
        self.misses_in_a_row = 0
        self.last_finished_s = now_s

    def missed(self, now_s: float, reason: str) -> None:
        """A round has not."""
        self.misses_in_a_row += 1
        self.aborted[reason] += 1

    @property
    def healthy(self) -> bool:
        return self.misses_in_a_row < self.unhealthy_after

    def shown(self, now_s: float) -> dict[str, Any]:
        """Return plain data for a status."""
        last_s = self.last_finished_s
        return {
            "rounds": self.rounds,
            "aborted": dict(self.aborted),
            "invitations_refused": self.invitations_refused,
            "misses_in_a_row": self.misses_in_a_row,
            "last_finished_s_ago": None if last_s is None else round(now_s - last_s, 1),
            "healthy": self.healthy,
        }
