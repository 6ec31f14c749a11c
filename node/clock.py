"""How far our wall clock is from the peers': hivemind's DHT refuses records of peers more than 3 s apart."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Final

from protocols.ids import PeerID

SKEW_MAX_S: Final = 2.0
"""Reported as unhealthy from here on, while there is still a second left before the directory refuses us."""
PEERS_MAX: Final = 32
"""A median of so many does not move by more answers."""


def unix_s() -> float:
    """The wall clock: for what is shown to people and sent to peers, never for durations."""
    return time.time()  # noqa: TID251 - the one place


@dataclass(slots=True)
class ClockSkew:
    """The median over peers of (their clock - ours), so that one wrong or lying peer does not decide it."""

    _offsets_s: dict[PeerID, float] = field(default_factory=dict)

    def observe(
        self, peer: PeerID, *, sent_unix_s: float, answered_unix_s: float, their_unix_s: float
    ) -> None:
        """Take one peer's clock, read between our two readings; half the round trip is the error made."""
        self._offsets_s.pop(peer, None)
        self._offsets_s[peer] = their_unix_s - (sent_unix_s + answered_unix_s) / 2
        if len(self._offsets_s) > PEERS_MAX:
            del self._offsets_s[next(iter(self._offsets_s))]

    @property
    def seconds(self) -> float | None:
        """Positive when our clock is behind; None before any peer has answered."""
        return statistics.median(self._offsets_s.values()) if self._offsets_s else None

    @property
    def problem(self) -> str | None:
        """What to tell the person, or None."""
        seconds = self.seconds
        if seconds is None or abs(seconds) <= SKEW_MAX_S:
            return None
        side = "behind" if seconds > 0 else "ahead of"
        return f"this machine's clock is {abs(seconds):.1f} s {side} its peers' (is NTP running?)"
