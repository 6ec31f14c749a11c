"""Epochs of an expert: which of its hosts, one after the other, is meant.

An epoch counts in its high bits how often the expert has changed hands; its low bits are drawn by the host that takes it. So
it grows with every change, and no two hosts ever have the same one, nor one host twice, whatever they knew of each other.
"""

from __future__ import annotations

import random
from typing import Final

_DRAWN_BITS: Final = 32
"""Of 20 two nodes that create one expert draw alike once in a million times: a simulated run in a few thousand."""
CHANGES_MAX: Final = (1 << 20) - 1
"""An expert that has changed hands more often than this was made up. Later hosts draw among the last epochs."""


def next_epoch(epoch: int, rng: random.Random, *, taken_back: bool = False) -> int:
    """Return an epoch for the host that takes an expert after this one; 0: nobody has had it.

    Args:
      taken_back: by the host of that epoch itself, who has been away. Of two that go on from one epoch the other goes before
        it: it has trained on meanwhile, and who was away could not know.
    """
    count = min(changes(epoch) + 1, CHANGES_MAX)
    first = 0 if taken_back else 1 << (_DRAWN_BITS - 1)
    return count << _DRAWN_BITS | first | rng.getrandbits(_DRAWN_BITS - 1)


def changes(epoch: int) -> int:
    """Return how often the expert has changed hands, the first host included; 0 for an epoch that a person chose."""
    return epoch >> _DRAWN_BITS


def plausible(epoch: int) -> bool:
    """Tell whether an expert may ever come to this epoch."""
    return changes(epoch) <= CHANGES_MAX
