"""Who begins a run when several nodes are started at once, with the same addresses of each other, and nobody is in it yet.

Of the peers that were named, one alone may begin it: the one with the smallest PeerID. All others only join, however
long it takes, so nodes that were given the same names never begin the run twice.

It has to know that it has not been begun before:
  - It asks the others first. One that is in the run is to be joined.
  - If it was in the run with others itself, these may go on without it: then it needs an answer from everybody named.
    If it never was, nobody else can have begun it, and who does not answer is not waited for.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from protocols.ids import PeerID


class Founding(enum.Enum):
    """What a node does that was started with a run and the names of its peers."""

    JOIN = "join"
    """Somebody else begins the run, or has begun it."""
    BEGIN = "begin"
    WAIT = "wait"
    """For an answer of everybody who was named."""


def founder_of(named: Collection[PeerID]) -> PeerID | None:
    """Return the one peer that may begin the run; None when nobody is named."""
    return min(named, default=None)


def founding(
    me: PeerID,
    named: Collection[PeerID],
    in_run: Mapping[PeerID, bool],
    *,
    was_with_others: bool,
) -> Founding:
    """Decide, once everybody who was named has been asked.

    Args:
      in_run: who has answered -> whether it knows a record of the run.
      was_with_others: the last record that we have known names others.
    """
    if me != founder_of(named) or any(in_run.values()):
        return Founding.JOIN
    silent = [peer for peer in named if peer != me and peer not in in_run]
    return Founding.WAIT if silent and was_with_others else Founding.BEGIN
