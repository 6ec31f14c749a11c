"""One piece of the model that this node holds, whatever the mode: what state transfer, checkpoints and leaving work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFacts:
    """What a checkpoint says of a part besides its tensors."""

    epoch: int = 0
    """Grows when a run, or a peer, goes on from an older version: versions may come again in it."""
    data_position: int | None = None
    """Batches, or steps, after which the data goes on; None: as many as the version."""
    note: bytes = b""
    """The mode's own."""


def _no_facts(version: int) -> PartFacts:
    return PartFacts()


@dataclass(frozen=True, slots=True)
class Part:
    """`stage/2`, `model`, `expert/ffn.3.17`: see `protocols.state_calls`. Complete: everything the next step depends on."""

    name: str
    version: int
    """Grows with every change, e.g. optimizer steps applied."""
    snapshot: Callable[[], tuple[int, Mapping[str, Tensor]]]
    """Returns the version and copies of the tensors by name; runs on the compute thread."""
    load: Callable[[Mapping[str, Tensor]], None]
    """Replaces the state by tensors of the same names and shapes; runs on the compute thread."""
    facts: Callable[[int], PartFacts] = field(default=_no_facts)
    """Of one version; on the event loop."""
