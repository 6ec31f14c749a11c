"""Stochastic wiring: which replica of a stage gets the next request.

Interleaved weighted round robin over expected finish time (SWARM, arXiv:2301.11913, section 3.2, and the authors'
balancer): each replica carries the sum of expected seconds it has been given; the least loaded gets the next request
and is charged when it is dispatched, not when it answers. Fast replicas so get proportionally more.

A replica that does not answer in time has too much to do, or is gone. Asking it again at the same pace would keep it busy
with answers that nobody waits for, so it gets half as many requests at once and twice the time, as TCP does it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from protocols.ids import PeerID
from protocols.ledger.journey import Backoff
from protocols.ledger.view import View

EMA_ALPHA: Final = 0.1
"""The authors' constant: about the last ten requests count."""
_RECENT: Final = 16
WINDOW_MAX: Final = 64.0
"""Requests of one trainer at one replica: more than any trainer has in flight unless it was told to."""
_CONNECTIONS: Final = 256
_NEIGHBOURS_MIN: Final = 8
_DOUBLINGS_MAX: Final = 16


def neighbours(stages: int) -> int:
    """How many replicas of one stage a trainer works with: it cannot hold a connection to each of thousands."""
    return max(_NEIGHBOURS_MIN, _CONNECTIONS // stages)


@dataclass(slots=True)
class _Replica:
    load_s: float
    seconds_per_size: float | None = None
    """Bias-corrected exponential mean; None before the first answer."""
    weighted_s: float = 0.0
    samples: int = 0
    updated_s: float = -math.inf
    barred: Backoff = field(default_factory=Backoff)
    outstanding: int = 0
    window: float = WINDOW_MAX
    timeouts: int = 0
    """In a row."""
    recent_s: list[float] = field(default_factory=list)

    def took(self, seconds: float, size: float) -> None:
        """Learn from one answer."""
        self.weighted_s += EMA_ALPHA * (seconds / size - self.weighted_s)
        self.samples += 1
        self.seconds_per_size = self.weighted_s / (1 - (1 - EMA_ALPHA) ** self.samples)


class Wiring:
    """The replicas of one stage as one trainer sees them.

    Args:
      rng: breaks ties, so that trainers do not all start with the same replica.
      most: replicas to work with.
      floor_s, ceiling_s: bounds of the deadline of one request.
    """

    def __init__(self, rng: random.Random, *, most: int, floor_s: float, ceiling_s: float) -> None:
        self._rng = rng
        self._most = most
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._replicas: dict[PeerID, _Replica] = {}
        self._typical_s: float | None = None

    def update(self, view: View, stage: int) -> None:
        """Follow the view. A newcomer starts at the smallest load: tried at once, but not given everything.

        Of many replicas a trainer knows some, drawn at random.
        """
        least_s = min((replica.load_s for replica in self._replicas.values()), default=0.0)
        for peer in list(self._replicas):
            member = view.find(peer)
            if member is None or member.stage != stage:
                del self._replicas[peer]
                self._typical_s = None
        everybody = view.replicas(stage)
        missing = min(len(everybody), self._most) - len(self._replicas)
        if missing <= 0:
            return
        if self._replicas:
            everybody = [member for member in everybody if member.peer not in self._replicas]
        if missing < len(everybody):
            everybody = self._rng.sample(everybody, missing)
        for member in everybody:
            self._replicas[member.peer] = _Replica(least_s)

    def choose(self, now_s: float, size: float) -> PeerID | None:
        """Pick a replica for a request of `size` (samples, backward counted 2.5 times) and charge it."""
        least_s, able = math.inf, []
        for peer, replica in self._replicas.items():
            if replica.barred.at_s > now_s or replica.outstanding >= replica.window:
                continue
            if replica.load_s < least_s:
                least_s, able = replica.load_s, [peer]
            elif replica.load_s == least_s:
                able.append(peer)
        if not able:
            return None
        chosen = able[int(self._rng.random() * len(able))]
        replica = self._replicas[chosen]
        speed = replica.seconds_per_size
        replica.load_s += size * (speed if speed is not None else self._typical())
        replica.outstanding += 1
        return chosen

    def ended(self, peer: PeerID) -> None:
        """A request to this replica is over, however it ended."""
        replica = self._replicas.get(peer)
        if replica is not None:
            replica.outstanding = max(0, replica.outstanding - 1)

    def timed_out(self, peer: PeerID) -> None:
        """A request was not answered in time. Call before `ended`."""
        replica = self._replicas.get(peer)
        if replica is not None:
            replica.timeouts = min(replica.timeouts + 1, _DOUBLINGS_MAX)
            replica.window = max(1.0, replica.outstanding / 2)

    def succeeded(self, now_s: float, peer: PeerID, size: float, started_s: float) -> None:
        """Learn from an answer. Overlapping requests share the time between them instead of counting it twice."""
        replica = self._replicas.get(peer)
        if replica is None:
            return
        interval_s = max(0.0, now_s - max(started_s, replica.updated_s))
        replica.took(interval_s, size)
        self._typical_s = None
        replica.updated_s = now_s
        replica.barred.reset()
        replica.timeouts = 0
        replica.window = min(WINDOW_MAX, replica.window + 1 / replica.window)
        replica.recent_s.append(now_s - started_s)
        del replica.recent_s[:-_RECENT]

    def bar(self, now_s: float, peer: PeerID, pause_s: float) -> None:
        """Leave a replica alone for a while, longer each time: it said busy, or failed."""
        replica = self._replicas.get(peer)
        if replica is not None:
            replica.barred.wait(now_s, first_s=pause_s, longest_s=self._floor_s / 2)

    def next_able_s(self) -> float | None:
        """When the first barred replica may be asked again."""
        return min((replica.barred.at_s for replica in self._replicas.values()), default=None)

    def deadline_s(self, peer: PeerID) -> float:
        """How long to wait for this peer: twice the median of its answers and ten deviations, within the run's bounds.

        Doubled with each timeout in a row: a peer that has become slow must get the chance to show how slow.
        """
        replica = self._replicas.get(peer)
        if replica is None or len(replica.recent_s) < 3:
            return self._ceiling_s
        middle = median(replica.recent_s)
        deviation = median(abs(seconds - middle) for seconds in replica.recent_s)
        patience_s = max(self._floor_s, 2 * middle + 10 * deviation)
        return min(self._ceiling_s, patience_s * 2.0**replica.timeouts)

    def _typical(self) -> float:
        """Speed assumed of a replica never measured: that of the others, so that it gets its share."""
        if self._typical_s is None:
            known = [s for r in self._replicas.values() if (s := r.seconds_per_size) is not None]
            self._typical_s = median(known) if known else 1.0
        return self._typical_s
