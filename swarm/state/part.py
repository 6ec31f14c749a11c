"""One piece of the model that this node holds, whatever the mode: what state transfer, checkpoints and leaving work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
