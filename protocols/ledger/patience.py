"""How soon a peer is let in again. Every admission is a record, and a member that does not answer holds up a step.

The first time at once; after that each time twice as late as the time before, until it has been quiet for as long.
So a peer that joins and falls silent, again and again, costs the others less and less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocols.ids import PeerID

_DOUBLINGS_MAX: Final = 6
_PEERS_MAX: Final = 4096
"""Beyond it those let in longest ago are forgotten: strangers cannot fill the table."""


@dataclass(frozen=True, slots=True)
class _LetIn:
    at_s: float
    times: int


class Patience:
    """Who was let in lately.

    Args:
      wait_s: before the second time.
      doublings_max: how often that may become twice as long.
    """

    __slots__ = ("_doublings_max", "_let_in", "_wait_s")

    def __init__(self, wait_s: float, *, doublings_max: int = _DOUBLINGS_MAX) -> None:
        self._wait_s = wait_s
        self._doublings_max = doublings_max
        self._let_in: dict[PeerID, _LetIn] = {}

    def let_in(self, now_s: float, peer: PeerID) -> None:
        """Note an admission."""
        before = self._let_in.pop(peer, None)
        lately = before is not None and now_s - before.at_s < 2 * self._wait_after(before)
        times = before.times + 1 if before is not None and lately else 1
        self._let_in[peer] = _LetIn(now_s, times)
        if len(self._let_in) > _PEERS_MAX:
            del self._let_in[next(iter(self._let_in))]

    def may_come(self, now_s: float, peer: PeerID) -> bool:
        """Tell whether a peer may be let in now."""
        before = self._let_in.get(peer)
        return before is None or now_s - before.at_s >= self._wait_after(before)

    def _wait_after(self, before: _LetIn) -> float:
        return float(self._wait_s * 2 ** min(before.times - 1, self._doublings_max))
