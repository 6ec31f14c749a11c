"""How long to wait for whom, whom to ask a second time, and whom to leave alone for a while.

Rules:
- A deadline follows what a peer's answers took: mean and mean deviation, as for TCP's retransmission timer (RFC 6298), of
  calls of the same kind and about the same size. A peer never asked such a thing before has the deadline of the others.
- A peer that failed is left alone, for twice as long after each failure in a row. One answer clears it.
- A wrong answer (not finite, wrong shape, absurdly large) counts like WRONG_WEIGHT failures: it is nobody's bad luck.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from protocols.experts.view import Claim
from protocols.ids import PeerID

Absent: TypeAlias = Literal["gone", "busy", "wrong", "elsewhere"]
"""Why a call came to nothing: no answer came; not just now; an answer that cannot be used; the expert is not there, or is
changing hands, which says nothing of the host."""
ELSEWHERE: Final = ("draining", "overtaken", "not-here", "diverged")
"""Codes of refusals that say something of the expert, not of its host."""

ALPHA: Final = 1 / 8
BETA: Final = 1 / 4
DEVIATIONS: Final = 6.0
"""RFC 6298 has 4; being late costs a token its expert here, and a retransmission there."""
AVOIDED_FIRST_S: Final = 0.5
AVOIDED_MAX_S: Final = 60.0
WRONG_WEIGHT: Final = 4
NORM_FACTOR: Final = 100.0
"""An output is absurd when its root mean square is so many times the median of the others' and of the input's."""
RECENT_MAX: Final = 512
"""Latencies kept for percentiles."""


@dataclass(slots=True)
class _Latency:
    """Seconds per answer, of one peer and one kind of call."""

    mean_s: float
    deviation_s: float

    def add(self, took_s: float) -> None:
        self.deviation_s += BETA * (abs(took_s - self.mean_s) - self.deviation_s)
        self.mean_s += ALPHA * (took_s - self.mean_s)


@dataclass(slots=True)
class _Standing:
    failures: int = 0
    """In a row, weighted."""
    avoided_until_s: float = -math.inf
    answered: int = 0
    failed: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class Consequence:
    """What else follows from an absent answer."""

    suspect: bool
    """The host may be down: have it probed."""
    refresh: bool
    """What the directory said may be old: look again."""


@dataclass(frozen=True, slots=True)
class StandingView:
    """What is thought of one peer, for people."""

    answered: int
    failed: int
    wrong: int
    avoided: bool
    mean_s: float | None


def kind_of(call: str, byte_count: int) -> str:
    """Return the kind of a call: those of one kind take about as long. Each is up to four times as large as the one below it.

    Args:
      byte_count: of the tensors that are sent.
    """
    return f"{call}/{byte_count.bit_length() // 2}"


class Dispatch:
    """What one caller knows of the hosts it asks.

    Args:
      floor_s: no deadline is shorter; ceiling_s: nor longer.
    """

    def __init__(self, *, floor_s: float, ceiling_s: float) -> None:
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._latencies: dict[tuple[PeerID, str], _Latency] = {}
        self._standings: dict[PeerID, _Standing] = {}
        self._recent: list[float] = []

    def deadline_s(self, peer: PeerID, kind: str) -> float:
        """Return how long to wait for an answer of this peer."""
        known = self._latencies.get((peer, kind))
        if known is None:
            others = [item for (_, of), item in self._latencies.items() if of == kind]
            if not others:
                return self._ceiling_s
            return self._bounded(2 * max(x.mean_s + DEVIATIONS * x.deviation_s for x in others))
        return self._bounded(known.mean_s + DEVIATIONS * known.deviation_s)

    def hedge_after_s(self, hosts: Sequence[Claim], kind: str) -> float | None:
        """Return when to ask the second host as well, which then may answer first; None when there is none, or nothing known.

        That late, few answers are outstanding, so few requests are made twice.
        """
        known = self._latencies.get((hosts[0].peer, kind)) if hosts else None
        if len(hosts) < 2 or known is None:
            return None
        return known.mean_s + 2 * known.deviation_s

    def spread(
        self, hosts: Sequence[Claim], kind: str, rng: random.Random, *, me: PeerID | None = None
    ) -> Sequence[Claim]:
        """Order the hosts of one expert anew for one call: who answers faster comes first more often. `me` is always first.

        Drawn, not sorted: who was slow once is asked again, and callers do not all turn to the same host.
        """
        if len(hosts) < 2:
            return hosts
        known = {host: self._latencies.get((host.peer, kind)) for host in hosts}
        fastest_s = min((of.mean_s for of in known.values() if of is not None), default=1.0)

        def drawn(host: Claim) -> float:
            latency = known[host]
            return rng.expovariate(1.0) * (latency.mean_s if latency is not None else fastest_s)

        return sorted(hosts, key=lambda host: -1.0 if host.peer == me else drawn(host))

    def answered(self, peer: PeerID, kind: str, took_s: float) -> None:
        """It answered, and rightly."""
        latency = self._latencies.get((peer, kind))
        if latency is None:
            self._latencies[peer, kind] = _Latency(took_s, took_s / 2)
        else:
            latency.add(took_s)
        self._recent.append(took_s)
        del self._recent[:-RECENT_MAX]
        standing = self._of(peer)
        standing.answered += 1
        standing.failures = 0
        standing.avoided_until_s = -math.inf

    def absent(self, peer: PeerID, why: Absent, now_s: float) -> Consequence:
        """A call to this host came to nothing."""
        if why != "elsewhere":
            self.failed(peer, now_s, wrong=why == "wrong")
        return Consequence(suspect=why == "gone", refresh=why != "busy")

    def failed(self, peer: PeerID, now_s: float, *, wrong: bool = False) -> None:
        """It was late, gone or busy; or `wrong`: what it sent cannot be used."""
        standing = self._of(peer)
        standing.failed += 1
        standing.wrong += wrong
        if now_s < standing.avoided_until_s and not wrong:
            return  # calls that were under way together fail together, and count once
        standing.failures += WRONG_WEIGHT if wrong else 1
        pause_s = AVOIDED_FIRST_S * 2.0 ** min(standing.failures - 1, 16)
        standing.avoided_until_s = now_s + min(AVOIDED_MAX_S, pause_s)

    def usable(self, claims: Sequence[Claim], now_s: float) -> Sequence[Claim]:
        """Leave out those that are left alone just now."""
        return [claim for claim in claims if not self.avoided(claim.peer, now_s)]

    def avoided(self, peer: PeerID, now_s: float) -> bool:
        known = self._standings.get(peer)
        return known is not None and now_s < known.avoided_until_s

    def percentiles_s(self) -> tuple[float, float] | None:
        """Return p50 and p95 of the latest answers."""
        if len(self._recent) < 2:
            return None
        cuts = statistics.quantiles(self._recent, n=20, method="inclusive")
        return cuts[9], cuts[18]

    def standings(self, now_s: float) -> Mapping[PeerID, StandingView]:
        return {
            peer: StandingView(
                of.answered, of.failed, of.wrong, now_s < of.avoided_until_s, self._mean_s(peer)
            )
            for peer, of in self._standings.items()
        }

    def _mean_s(self, peer: PeerID) -> float | None:
        means = [item.mean_s for (of, _), item in self._latencies.items() if of == peer]
        return max(means, default=None)

    def _of(self, peer: PeerID) -> _Standing:
        return self._standings.setdefault(peer, _Standing())

    def _bounded(self, wanted_s: float) -> float:
        return min(max(wanted_s, self._floor_s), self._ceiling_s)


def absurd(sizes: Sequence[float], input_size: float) -> Sequence[int]:
    """Return which outputs are far larger than the others and than the input.

    Args:
      sizes: root mean square of each expert's output for one layer's rows.
      input_size: of the rows that went in.
    """
    found = []
    for i, size in enumerate(sizes):
        others = [other for other in [*sizes[:i], *sizes[i + 1 :]] if math.isfinite(other)]
        usual = max(statistics.median_low(others) if others else 0.0, input_size)
        if not size <= NORM_FACTOR * usual:  # true of NaN as well
            found.append(i)
    return found
