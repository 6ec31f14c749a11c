"""Which cores the pipeline's seeds must walk through, and which of their branches no seed can take.

A branch that is excused has a unit test instead. This module imports no core: a process marks them before they are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_LEDGER: Final = Path(__file__).parents[3] / "protocols" / "ledger"
_SHELL_ONLY: Final = ("__init__", "calls", "grants")
"""Modules used by the shells alone: the wire form of calls, signatures."""

_TOO_MANY: Final = "needs thousands of peers; a unit test has a smaller limit"
_MANY: Final = "only from 128 members on, as in tests.sim.scale; a unit test has a smaller limit"
_LYING_LEAD: Final = (
    "an honest lead asks all members first, see checkers/all_prepared; the rest is a unit test"
)
_EXCUSED: Final = {
    "lead.Lead._propose_view: if len(members) < MEMBERS_MAX: no": _TOO_MANY,
    "leases.Leases.renew: if trainer not in self._held and len(self._held) >= TRAINERS_MAX: yes": _TOO_MANY,
    "patience.Patience.let_in: if len(self._let_in) > _PEERS_MAX: yes": _TOO_MANY,
    "pulse.Pulse.heard: if len(self._heard_s) > PEERS_MAX: yes": _TOO_MANY,
    "lead.Lead._review: if self._hold_back(now_s, urgent=True): yes": _MANY,
    "lead.Lead._review: if self._hold_back(now_s, urgent=bool(gone)): yes": _MANY,
    "lead.Lead._changes_due_s: if self.phase is not Phase.DEALING or self._changed_at_s == -math.inf: no": _MANY,
    "wiring.Wiring.update: if missing < len(everybody): yes": "only with more replicas of a stage than runs of many seeds have; there is a unit test",
    "trainer.Trainer._leg_failed: if event.code == 'diverged': yes": "gradients are sets here; there is a unit test",
    "tally.Tally.settle: if not 0 <= microbatch < self.microbatches: yes":
        "no lease has a microbatch that its step has not; there is a unit test",
    "member.Ledger._learn: if self.me in record.view: yes": _LYING_LEAD,
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {f"protocols.ledger.{path.stem}": path for path in sorted(_LEDGER.glob("*.py")) if path.stem not in _SHELL_ONLY},
    _EXCUSED,
)  # fmt: skip
