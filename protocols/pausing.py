"""Whether a node rests: because its owner said so, or by a schedule of the owner's. A pure core.

Rules of this file:
  - The owner's word comes first, and ends by itself when it named a time. Then the hours, then how busy the machine is.
  - A machine is busy when other programs have kept more cores than allowed busy for a minute, and free again after two
    minutes below that: a burst does neither end nor begin a pause.
  - Hours are of the machine's own clock and may span midnight. Who names some trains in those only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from protocols.schema import Range

BUSY_S: Final = 60.0
FREE_S: Final = 120.0
MINUTES: Final = 24 * 60
_HOURS: Final = re.compile(r"([01]?\d|2[0-4])(?::([0-5]\d))?-([01]?\d|2[0-4])(?::([0-5]\d))?")


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of every day, in minutes from midnight; `end` is not in it. One that ends before it begins spans midnight."""

    begin: int
    end: int

    def contains(self, minute: int) -> bool:
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


def hours_from_text(text: str) -> Hours:
    """Read `22:00-7:30` or `9-17`. Raises ValueError, with what would be right."""
    match = _HOURS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"must be hours like 22:00-07:00, not {text[:40]!r}")
    first, first_minutes, last, last_minutes = (int(group or 0) for group in match.groups())
    begin, end = 60 * first + first_minutes, 60 * last + last_minutes
    if max(begin, end) > MINUTES or begin % MINUTES == end % MINUTES:
        raise ValueError(f"must begin and end at different times of one day, not {text[:40]!r}")
    return Hours(begin % MINUTES, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a node must know of its pause after a restart."""

    asked: bool = False
    """By the owner."""
    until_unix_s: Annotated[float, Range(0.0)] | None = None
    """When the owner's pause ends; None: when the owner says so."""
    busy: bool = False
    """Other programs kept the machine busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is looked at, every few seconds."""

    now_s: float
    """Of a clock that never goes back."""
    now_unix_s: float
    minute: int
    """Of the local day, 0 to 1439."""
    others_cores: float | None = None
    """How many cores other programs keep busy; None: not known."""


class Pausing:
    """One node's pauses.

    Args:
      hours: when it may train; empty: at any time.
      idle_load: cores that other programs may keep busy; None: any number.
      kept: of the life before.
    """

    def __init__(
        self, hours: Sequence[Hours] = (), idle_load: float | None = None, kept: Kept | None = None
    ) -> None:
        kept = kept or Kept()
        self._hours = tuple(hours)
        self._idle_load = idle_load
        self._asked = kept.asked
        self._until_unix_s = kept.until_unix_s
        self._busy = kept.busy and idle_load is not None
        self._other_since_s: float | None = None
        """Since when the machine has looked other than `_busy` says."""

    @property
    def kept(self) -> Kept:
        """What has to be on disk before a pause counts."""
        return Kept(asked=self._asked, until_unix_s=self._until_unix_s, busy=self._busy)

    def ask(self, until_unix_s: float | None) -> None:
        """The owner wants the machine back."""
        self._asked, self._until_unix_s = True, until_unix_s

    def take_back(self) -> None:
        """The owner gives it again."""
        self._asked, self._until_unix_s = False, None

    def observe(self, facts: Facts) -> str | None:
        """Take note of how it stands; return why this node rests, for people, or None when it may train."""
        self._look_at_load(facts)
        if self._asked and self._until_unix_s is not None:
            left_s = self._until_unix_s - facts.now_unix_s
            if left_s <= 0:
                self.take_back()
        if self._asked:
            return "asked by `murmura pause`"
        if self._hours and not any(hours.contains(facts.minute) for hours in self._hours):
            return "outside of schedule_hours"
        if self._busy:
            return (
                f"other programs keep more than {self._idle_load:g} cores busy (schedule_idle_load)"
            )
        return None

    def _look_at_load(self, facts: Facts) -> None:
        if self._idle_load is None or facts.others_cores is None:
            return
        if (facts.others_cores > self._idle_load) is self._busy:
            self._other_since_s = None
        elif self._other_since_s is None:
            self._other_since_s = facts.now_s
        elif facts.now_s - self._other_since_s >= (FREE_S if self._busy else BUSY_S):
            self._busy, self._other_since_s = not self._busy, None
