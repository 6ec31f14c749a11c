"""How the directory is doing, for `status`: kept as events come in, read without waiting."""

from __future__ import annotations

import enum
import logging
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

from node.dht.messages import Greeting, Met, Statistics
from protocols.ids import PeerID

log = logging.getLogger(__name__)

LATENCIES_MAX: Final = 512
"""Lookups that the percentiles speak of: the last few minutes."""
SKEWS_MAX: Final = 32
"""Peers whose clocks are compared; a median of so many does not move by more."""


class DirectoryState(enum.StrEnum):
    """Where the directory is."""

    STARTING = "starting"
    JOINING = "joining"
    """The process is up and nobody else in the DHT is known yet."""
    JOINED = "joined"
    ISOLATED = "isolated"
    """Others were known and none is left."""
    RESTARTING = "restarting"
    """The process is down; reads come from memory."""


@dataclass(slots=True)
class DirectoryHealth:
    """State with its reason, and counts since the node began."""

    state: DirectoryState = DirectoryState.STARTING
    reason: str = "the dht process is being started"
    since_s: float = 0.0
    process_restarts: int = 0
    dht_peers: int = 0
    lookups: int = 0
    lookups_failed: int = 0
    _had_peers: bool = False
    _latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    _skews_s: dict[PeerID, float] = field(default_factory=dict)
    _greetings: dict[PeerID, str] = field(default_factory=dict)
    _refused: Counter[str] = field(default_factory=Counter)
    _statistics: Statistics | None = None
    _past_refused: Counter[str] = field(default_factory=Counter)
    """By dht processes that have ended: a process counts from zero."""

    def enter(self, state: DirectoryState, reason: str, now_s: float) -> None:
        """Note a state. Logged when it, or its reason, is another one than before."""
        if state is DirectoryState.RESTARTING:
            self.dht_peers = 0
            self._past_refused += _refusals(self._statistics)
            self._statistics = None
        if (state, reason) != (self.state, self.reason):
            level = logging.DEBUG if state is self.state else logging.INFO
            log.log(level, "directory: state=%s (%s)", state, reason)
        if state is not self.state:
            self.since_s = now_s
        self.state, self.reason = state, reason

    def met(self, met: Met, counts: Statistics, now_s: float) -> None:
        """Take what a round of greetings and the process's own counts say."""
        self.dht_peers, self._statistics = counts.peers, counts
        self._greetings = {greeting.peer: _outcome(greeting) for greeting in met.greetings}
        for greeting in met.greetings:
            if greeting.answered:
                self._skews_s.pop(greeting.peer, None)
                self._skews_s[greeting.peer] = greeting.skew_s
        while len(self._skews_s) > SKEWS_MAX:
            del self._skews_s[next(iter(self._skews_s))]
        self._had_peers = self._had_peers or counts.peers > 0
        if counts.peers:
            self.enter(DirectoryState.JOINED, f"{counts.peers} peers in the DHT", now_s)
        elif self._had_peers:
            self.enter(DirectoryState.ISOLATED, "every peer of the DHT is gone", now_s)
        else:
            reason = (
                "no connected peer serves the directory"
                if met.greetings
                else "no peer is connected"
            )
            self.enter(DirectoryState.JOINING, reason, now_s)

    def looked_up(self, seconds: float) -> None:
        """Count one lookup that went to the DHT."""
        self.lookups += 1
        self._latencies_s.append(seconds)

    def refused(self, reason: str) -> None:
        """Count a record that this node, as a reader, does not believe."""
        self._refused[reason] += 1

    @property
    def clock_skew_s(self) -> float | None:
        """The median over peers of their clock minus ours; None before anybody answered."""
        return statistics.median(self._skews_s.values()) if self._skews_s else None

    def status(self, now_s: float) -> dict[str, Any]:
        """Plain data for `murmura status --json`."""
        refused = self._refused + self._past_refused + _refusals(self._statistics)
        counts = self._statistics
        return {
            "state": str(self.state),
            "reason": self.reason,
            "state_seconds": round(now_s - self.since_s, 1),
            "process_restarts": self.process_restarts,
            "dht_peers": self.dht_peers,
            "greeted": {str(peer): outcome for peer, outcome in self._greetings.items()},
            "records_stored": counts.records if counts else 0,
            "record_bytes": counts.record_bytes if counts else 0,
            "records_refused": dict(sorted(refused.items())),
            "lookups": self.lookups,
            "lookups_failed": self.lookups_failed,
            "lookup_p50_seconds": self._percentile(0.50),
            "lookup_p95_seconds": self._percentile(0.95),
            "clock_skew_seconds": self.clock_skew_s,
        }

    def _percentile(self, share: float) -> float | None:
        if not self._latencies_s:
            return None
        ordered = sorted(self._latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _outcome(greeting: Greeting) -> str:
    if not greeting.answered:
        return "serves no directory, or did not answer in time"
    return "in one DHT with us" if greeting.sees_us else "answers, but cannot reach our directory"


def _refusals(counts: Statistics | None) -> Counter[str]:
    if counts is None:
        return Counter()
    return Counter(counts.refused_stores) + Counter(counts.refused_reads)
