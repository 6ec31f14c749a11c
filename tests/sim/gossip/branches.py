"""Which cores the gossip seeds must walk through, and which of their branches no seed can take.

A branch that is excused has a unit test instead. This module imports no core: a process marks them before they are imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.sim.engine.subject import Measured

_GOSSIP: Final = Path(__file__).parents[3] / "protocols" / "gossip"
_SHELL_ONLY: Final = ("__init__", "claims", "messages", "settings")
"""Forms and checks of what is sent and configured; claims are of the data, and no peer's of this core."""

_MANY: Final = "needs thousands of peers"
_SHELL: Final = "the shell would answer what was not asked; the simulated one does not"
_EXCUSED: Final = {
    "gossip.Gossip._job_done: if type(event) is not self._awaited: yes": _SHELL,
    "pushes.Pushes.answered: if peer is None: yes": _SHELL,
    "pushes.Pushes.failed: if peer is None: yes": _SHELL,
    "pushes.Pushes._end: if peer is not None: no": _SHELL,
    "gossip.Gossip._drain: if self._leave_by_s is not None: yes": "a simulated peer is told to leave once",
    "gossip.Gossip._leave: if self._left: yes": "a guard: whoever has left takes no event that comes here",
    "newcomer.Newcomer.fetched: if self.done or self._fetching != event.peer: yes":
        "it waits for one fetch at a time, and a call that has failed brings nothing any more",
    "topology.Topology.neighbours: if len(peers) > PEERS_MAX: yes": _MANY,
    "topology.Topology._order: if len(known) > 2 * PEERS_MAX: yes": _MANY,
}  # fmt: skip
"""Name of a branch -> why no seed can take it."""

MEASURED: Final = Measured(
    {f"protocols.gossip.{path.stem}": path for path in sorted(_GOSSIP.glob("*.py")) if path.stem not in _SHELL_ONLY},
    _EXCUSED,
)  # fmt: skip
