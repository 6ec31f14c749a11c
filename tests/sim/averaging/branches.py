"""Which cores the averaging seeds must walk through, and which of their branches no seed can take.

A branch that is excused has a unit test instead. This module imports no core: a process marks them before they are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_AVERAGING: Final = Path(__file__).parents[3] / "protocols" / "averaging"
_SHELL_ONLY: Final = ("__init__", "accounts", "calls", "events", "messages", "settings")

_MANY: Final = "needs more peers, keys or rounds than a run has"
_SHELL: Final = (
    "the shell would answer what was not asked, or ask what it must not; the simulated one does not"
)
_EXCUSED: Final = {
    "averaging.Averaging._want: if key in self._wants or event.version <= self._begun.get(key, -1): yes": _SHELL,
    "averaging.Averaging._want: if not 0 < event.weight <= self._spec.weight_max: yes": _SHELL,
    "averaging.Averaging._state: if len(stated) >= _STATED_MAX: yes": _MANY,
    "contacts.Contacts.heard: if len(self._heard) >= _HEARD_MAX: yes": _MANY,
    "contacts.Contacts.expected: if self._own not in places or len(places) == 1: no": _MANY,
    "meeting.Meetings.learn_spread: if len(self._spread_s) >= MEETINGS_MAX: yes": _MANY,
    "meeting.Meetings.join: if len(self._meetings) >= MEETINGS_MAX and (not self._make_room(peer)): yes": _MANY,
    "meeting.Meetings._make_room: if counts[peer] + 1 >= count: yes": _MANY,
    "meeting.Meetings._make_room: if counts[peer] + 1 >= count: no": _MANY,
    "meeting.Meetings.join: if len(meeting.joined) >= JOINED_MAX: yes": _MANY,
    "meeting.Meetings._close: if len(self._closed) > _CLOSED_MAX: yes": _MANY,
    "round.Round.mean_ready: if exchange in self._groups: no": _SHELL,
    "round.Round.mean_ready: if result != self._held: no": "what is held is neither made nor fetched again",
    "round.Round.failed: if index == self._own: yes": "a simulated sum takes no longer than an exchange may",
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {f"protocols.averaging.{path.stem}": path for path in sorted(_AVERAGING.glob("*.py")) if path.stem not in _SHELL_ONLY},
    _EXCUSED,
)  # fmt: skip
