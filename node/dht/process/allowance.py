"""How much work one peer may make the dht process do. Pure: the caller passes the time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

PEERS_MAX: Final = 4096
"""Peers remembered. An attacker with more identities than this makes us forget the oldest, who then have a full one."""


class Allowance:
    """A token bucket per peer: `burst` at once, refilled at `rate` per second. One record checked is one token."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # (tokens, as of)

    def spend(self, peer: bytes, tokens: float, now_s: float) -> bool:
        """Take tokens, or take none and return False."""
        left, as_of_s = self._left.pop(peer, (self._burst, now_s))
        left = min(self._burst, left + self._rate * max(0.0, now_s - as_of_s))
        allowed = tokens <= left
        self._left[peer] = (left - tokens if allowed else left, now_s)
        if len(self._left) > PEERS_MAX:
            self._left.popitem(last=False)
        return allowed
