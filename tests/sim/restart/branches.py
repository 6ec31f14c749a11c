"""Which core the seeds must walk through, and which of its branches no seed can take.

A branch that is excused has a unit test instead (tests/protocols/ledger/test_restart.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_LEDGER: Final = Path(__file__).parents[3] / "protocols" / "ledger"
_MALFORMED: Final = "nobody sends what is malformed here"
_ONE_RECORD: Final = "members propose what they can begin with, and nobody lies"
_EXCUSED: Final = {
    "restart.Restart._back: if shape_problem(back.newest, stages=self._settings.stages) is not None: yes": _MALFORMED,
    "restart.Restart._decided: if shape_problem(record, stages=self._settings.stages) is not None: yes": _MALFORMED,
    "restart.Restart._asked: if ballot.peer != peer or ballot.round > ROUND_MAX: yes": _MALFORMED,
    "restart.Restart._asked: if self._why_not(asked.record) is not None: yes": _ONE_RECORD,
    "restart.Restart._why_not: if (record.epoch, record.forks) != (newest.epoch + 1, newest.forks): yes": _ONE_RECORD,
    "restart.Restart._why_not: if record.commits_step or not record.members: yes": _ONE_RECORD,
    "restart.Restart._propose: if self._why_not(record) is not None: yes": _ONE_RECORD,
    "restart.Restart._tick: if now_s < self._next_beat_s: yes": "the simulated clock wakes a core when it wished to be woken",
    "restart.Restart._counts: if claim.step > self._settings.steps or claim.stage >= self._settings.stages: yes": _MALFORMED,
    "restart.Restart._ends: if shape_problem(record, stages=self._settings.stages) is not None: yes": _MALFORMED,
    "reunion.Reunion.told: if shape_problem(theirs, stages=self._stages) is not None or peer not in theirs.view: yes": _MALFORMED,
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {
        "protocols.ledger.restart": _LEDGER / "restart.py",
        "protocols.ledger.reunion": _LEDGER / "reunion.py",
    },
    _EXCUSED,
)
