"""One identity on two machines at once: a copied state folder, a cloned machine. Both would answer for one peer, and no
run goes on with that.

Proof is a record that our own key has signed, after we started, and that names a start which is not ours. Nobody else can
make one, so no liar can stop a node. Of the two the one that started later goes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocols.schema import Natural


@dataclass(frozen=True, slots=True, order=True)
class Start:
    """One life of a node, as it says itself in its signed record."""

    at_s: float
    """Unix seconds by its clock."""
    incarnation: Natural
    """Random, so that no two lives are alike."""


class Twin(enum.Enum):
    """What a record of our own identity says."""

    NONE = "none"
    GOES = "the other one goes"
    STAYS = "we go"


def judge(ours: Start, theirs: Start, *, issued_s: float) -> Twin:
    """Tell what a record under our name means.

    Args:
      issued_s: when it was signed. What a former life of ours has signed is older than this one.
    """
    if theirs.incarnation == ours.incarnation or issued_s <= ours.at_s:
        return Twin.NONE
    return Twin.STAYS if theirs < ours else Twin.GOES
