"""Which cores the averaging seeds must walk through, and which of their branches no seed can take.

A branch that is excused has a unit test instead. This module imports no core: a process marks them before they are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_AVERAGING: Final = Path(__file__).parents[3] / "protocols" / "averaging"
_SHELL_ONLY: Final = ("__init__", "accounts", "calls", "events", "messages", "settings")

_EXCUSED: Final[dict[str, str]] = {}
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {f"protocols.averaging.{path.stem}": path for path in sorted(_AVERAGING.glob("*.py")) if path.stem not in _SHELL_ONLY},
    _EXCUSED,
)  # fmt: skip
