"""Epochs of a run: how often it has gone on from checkpoints, and in which of its histories.

    bits 50 ... 62   how often an operator's word has begun an epoch without a majority
         20 ... 49   nonce of the last such word: tells apart what two operators began who did not know of each other
          0 ... 19   how often since then members have agreed to go on

So a run of which nobody ever said that has the epochs 0, 1, 2 …; and a later epoch of one history is always the larger one.
"""

from __future__ import annotations

import random
from typing import Final

_AGREED_BITS: Final = 20
_NONCE_BITS: Final = 30
_WORDS_MAX: Final = (1 << 13) - 1
_AGREED_AHEAD_MAX: Final = 1024
_WORDS_AHEAD_MAX: Final = 64
"""Each follows a loss of all members, or of most and a word: nobody misses so many."""


def begun_alone(epoch: int, rng: random.Random) -> int:
    """Return an epoch after this one that an operator's word begins: of a history of its own."""
    words = min((epoch >> (_AGREED_BITS + _NONCE_BITS)) + 1, _WORDS_MAX)
    return (words << _NONCE_BITS | rng.getrandbits(_NONCE_BITS)) << _AGREED_BITS


def is_too_far(epoch: int, known: int) -> bool:
    """Tell whether an epoch was made up to use the numbers up: nobody can be so far ahead of the one that we know."""
    agreed, words = (1 << _AGREED_BITS) - 1, _AGREED_BITS + _NONCE_BITS
    return (epoch & agreed) > (known & agreed) + _AGREED_AHEAD_MAX or (epoch >> words) > (
        known >> words
    ) + _WORDS_AHEAD_MAX


def history_of(epoch: int) -> int:
    """Name the history that an epoch is of; 0 before anybody has begun one alone."""
    return epoch >> _AGREED_BITS


def shown(epoch: int) -> str:
    """Spell an epoch for people: `2`, or `2 of history 1-03f1c2aa`."""
    history, agreed = divmod(epoch, 1 << _AGREED_BITS)
    words, nonce = divmod(history, 1 << _NONCE_BITS)
    return f"{agreed} of history {words}-{nonce:08x}" if history else str(agreed)
