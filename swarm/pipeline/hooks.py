"""What the node around a pipeline peer wants to hear of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocols.ledger.view import Record
from swarm.state.part import Part

if TYPE_CHECKING:
    from torch import Tensor


async def _nothing(part: Part) -> None:
    pass


async def _nowhere(stage: int, record: Record) -> None:
    """Nothing is on a disk."""


@dataclass(slots=True)
class PeerHooks:
    """Called on the event loop; must not raise and must not wait."""

    record_learned: Callable[[Record], None] = lambda record: None
    syncing: Callable[[str], None] = lambda reason: None
    serving: Callable[[str], None] = lambda reason: None
    left: Callable[[], None] = lambda: None
    """A drain is over: no work and no state is held for others any more."""
    refuses_work: Callable[[], str | None] = lambda: None
    """Why no work is taken just now, or None; not asked while draining."""
    stepped: Callable[[Part], Awaitable[None]] = _nothing
    """The stage has reached a version. May wait, for the compute thread only; the next step is applied afterwards."""
    on_disk: Callable[[int, Record], Awaitable[Mapping[str, Tensor] | None]] = _nowhere
    """Returns the state of a stage after the step of a record, if this node has written it. May wait."""
