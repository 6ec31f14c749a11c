"""Counters of what goes over the wire, by service, for `murmura status` and the metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """One service in one role (calling or serving). Monotonic since the node started."""

    calls: int = 0
    """Requests answered, refused or failed; a caller counts them when they start."""
    failures: int = 0
    """Of those, the ones that ended in an error of any kind."""
    casts: int = 0
    casts_dropped: int = 0
    streams_opened: int = 0
    streams_refused: int = 0
    """By a service, for another run, version or key."""
    bytes_sent: int = 0
    bytes_received: int = 0


class TrafficTable:
    """Traffic by service name. Services are ours, so the table is bounded by our own code."""

    def __init__(self) -> None:
        self._by_service: dict[str, Traffic] = {}

    def of(self, service: str) -> Traffic:
        """Return the live counters of one service."""
        return self._by_service.setdefault(service, Traffic())

    def snapshot(self) -> Mapping[str, Traffic]:
        """Return a copy that does not change any more."""
        return {
            service: dataclasses.replace(traffic) for service, traffic in self._by_service.items()
        }
