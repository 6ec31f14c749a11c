"""Who has been heard from lately. Suspicion is a guess: it says whom to ask next, and whom to propose to go on without.

What follows from it is decided by a quorum; a member that was wrongly suspected joins again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from protocols.ids import PeerID

PEERS_MAX: Final = 32768
"""Twice the members a run may have. Beyond it the longest silent are forgotten, so strangers cannot fill the table."""


class Pulse:
    """Arrivals per peer.

    Args:
      silence_s: a peer not heard for this long is suspected.
    """

    __slots__ = ("_down", "_heard_s", "_looked_s", "_pace", "silence_s")

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self._pace = 1
        self._heard_s: dict[PeerID, float] = {}
        self._down: set[PeerID] = set()
        self._looked_s: float | None = None

    @property
    def pace(self) -> int:
        """One heartbeat in so many is expected."""
        return self._pace

    def set_pace(self, now_s: float, pace: int) -> None:
        """Expect arrivals so many times more rarely. Back at a quicker pace everybody gets a new chance."""
        if pace < self._pace:
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._pace = pace

    def heard(self, now_s: float, peer: PeerID) -> None:
        self._heard_s.pop(peer, None)  # and in again as the newest
        self._heard_s[peer] = now_s
        self._down.discard(peer)
        if len(self._heard_s) > PEERS_MAX:
            self.forget(next(iter(self._heard_s)))

    def down(self, peer: PeerID) -> None:
        """The transport lost the peer and could not reach it again: suspect it until it is heard."""
        if peer in self._heard_s:
            self._down.add(peer)

    def __len__(self) -> int:
        return len(self._heard_s)

    def watch(self, now_s: float, peers: Iterable[PeerID]) -> None:
        """Start the clock of peers never heard from."""
        for peer in peers:
            self._heard_s.setdefault(peer, now_s)

    def forget(self, peer: PeerID) -> None:
        self._heard_s.pop(peer, None)
        self._down.discard(peer)

    def look(self, now_s: float) -> None:
        """Note that we are awake. After a pause of our own (a suspended machine) everybody gets a new chance."""
        if self._looked_s is not None and now_s - self._looked_s > self.silence_s * self._pace:
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._looked_s = now_s

    def suspects(self, now_s: float, peer: PeerID) -> bool:
        heard_s = self._heard_s.get(peer)
        return peer in self._down or (
            heard_s is not None and now_s - heard_s > self.silence_s * self._pace
        )

    def silence(self, now_s: float, peer: PeerID) -> float:
        """Seconds since the peer was heard; 0 for one never watched."""
        return now_s - self._heard_s.get(peer, now_s)
