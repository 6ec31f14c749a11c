"""Which modes there are, as far as a run file goes: mode -> the shape of its table.

A table is a frozen dataclass beside the mode's core. It may define `check_run(run)`, which raises SchemaError when other
parts of the run do not suit it, and says with `CAN_START = True` that its mode knows `[start]`. Nothing is ever added here by what comes from the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from protocols.collective.settings import CollectiveSpec
from protocols.experts.spec import MoeSpec
from protocols.gossip.settings import GossipSpec
from protocols.run.pipeline import PipelineSpec

if TYPE_CHECKING:
    from protocols.run.spec import RunSpec

TABLES: Final[dict[str, type]] = {
    "pipeline": PipelineSpec,
    "gossip": GossipSpec,
    "collective": CollectiveSpec,
    "moe": MoeSpec,
}


@runtime_checkable
class ChecksRun(Protocol):
    """A table with rules that concern other tables."""

    def check_run(self, run: RunSpec) -> None:
        """Raise SchemaError when the run cannot be trained this way; its path is the run file's."""
        ...


def register_table(mode: str, table: type) -> None:
    """Make a mode known. For programs that bring a mode of their own; call it before any run is read."""
    if TABLES.setdefault(mode, table) is not table:
        raise ValueError(f"there is a mode {mode!r} already")
