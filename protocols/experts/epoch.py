"""Epochs of an expert: which of its hosts, one after the other, is meant.

An epoch counts in its high bits how often the expert has changed hands; its low bits are drawn by the host that takes it. So
it grows with every change, and no two hosts ever have the same one, nor one host twice, whatever they knew of each other.
"""

from __future__ import annotations

import random
from typing import Final

_DRAWN_BITS: Final = 20
CHANGES_MAX: Final = (1 << 33) - 1
"""What fits on the wire beside the drawn bits."""
JUMP_MAX: Final = 1000
"""An epoch that is so many changes ahead of the one known before was made up: nobody misses that many."""


def next_epoch(epoch: int, rng: random.Random) -> int:
    """Return an epoch for the host that takes an expert after this one; 0: nobody has had it."""
    count = min(changes(epoch) + 1, CHANGES_MAX)
    return count << _DRAWN_BITS | rng.getrandbits(_DRAWN_BITS)


def changes(epoch: int) -> int:
    """Return how often the expert has changed hands, the first host included; 0 for an epoch that a person chose."""
    return epoch >> _DRAWN_BITS


def plausible(epoch: int, known: int) -> bool:
    """Tell whether an expert of the `known` epoch may have come to this one meanwhile."""
    return changes(epoch) - changes(known) <= JUMP_MAX
