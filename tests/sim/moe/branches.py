"""Which cores the moe seeds must walk through, and which of their branches no seed can take.

A branch that is excused has a unit test instead. This module imports no core: a process marks them before they are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_EXPERTS: Final = Path(__file__).parents[3] / "protocols" / "experts"
_SHELL_ONLY: Final = ("__init__", "messages", "spec", "uid")
"""Forms and checks of what is sent and configured, and names."""

_NUMBERS: Final = "of the sizes of tensors, which there are none of here"
_PEOPLE: Final = "for people who ask; nobody does here"
_EXCUSED: Final = {
    "dispatch.absurd: for (i, size) in enumerate(sizes): yes": _NUMBERS,
    "dispatch.absurd: for (i, size) in enumerate(sizes): no": _NUMBERS,
    "dispatch.absurd: if not size <= NORM_FACTOR * usual: yes": _NUMBERS,
    "dispatch.absurd: if not size <= NORM_FACTOR * usual: no": _NUMBERS,
    "dispatch.Dispatch.percentiles_s: if len(self._recent) < 2: yes": _PEOPLE,
    "dispatch.Dispatch.percentiles_s: if len(self._recent) < 2: no": _PEOPLE,
    "placement.Placement._take_back: if self._has_room: no": "a node has the same room in all its lives",
    "search.BeamSearch.__init__: if [len(row) for row in scores] != list(grid.sizes): yes": "a mistake of the caller's",
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {f"protocols.experts.{path.stem}": path for path in sorted(_EXPERTS.glob("*.py")) if path.stem not in _SHELL_ONLY},
    _EXCUSED,
)  # fmt: skip
