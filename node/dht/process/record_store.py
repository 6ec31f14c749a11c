"""What a node stores for the others, and how much room it gives to whom.

PeerIDs are free, so without bounds one stranger fills our memory. hivemind's own storage has none, keeps one heap
entry for every store it was ever asked for, and lets a refused old record shorten the life of the newer one it
lost against; so the records live here and hivemind reads them through `node.dht.process`. Pure: the caller passes
the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from protocols.records import Refusal, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of what others may store here."""

    total_bytes_max: int = 64 * 1024 * 1024
    """Out of the 500 MB an idle node may take; records of ten thousand honest peers need about 20 MB."""
    owner_bytes_max: int = 256 * 1024
    """A node with a stage and a few experts announces some ten keys of a few hundred bytes."""
    records_per_key_max: int = 1024
    """Readers get a key in one message; this many of the usual size make 0.5 MB."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A checked statement and the bytes it came in, which are what readers get."""

    statement: Statement
    raw: bytes


class RecordStore:
    """Live records by key digest and owner.

    What an owner replaces by something no larger is always admitted: a full node must not lose the honest.
    """

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self._records: dict[bytes, dict[bytes, StoredRecord]] = {}
        self._expiries: list[tuple[float, bytes, bytes]] = []
        self._owner_bytes: dict[bytes, int] = {}
        self._count = 0
        self._total_bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def offer(
        self, digest: bytes, statement: Statement, raw: bytes, now_s: float
    ) -> Refusal | None:
        """Store a checked record, or say why not. None also for the very record that is held already."""
        self.forget_expired(now_s)
        held = self._records.get(digest, {}).get(statement.owner)
        if held is not None and not statement.supersedes(held.statement):
            return None if held.raw == raw else Refusal.SUPERSEDED
        growth = len(raw) - (len(held.raw) if held else 0)
        if growth > 0 and not self._has_room(digest, statement.owner, growth, is_new=held is None):
            return Refusal.FULL
        self._records.setdefault(digest, {})[statement.owner] = StoredRecord(statement, raw)
        self._account(statement.owner, growth, records=0 if held else 1)
        heapq.heappush(self._expiries, (statement.expires_s, digest, statement.owner))
        if (
            len(self._expiries) > 2 * self._count + 64
        ):  # most entries speak of records that were replaced
            self._rebuild_expiries()
        return None

    def find(self, digest: bytes, now_s: float) -> Sequence[StoredRecord]:
        """Return the live records under a key, those that say an owner left included, in any order."""
        self.forget_expired(now_s)
        return tuple(self._records.get(digest, {}).values())

    def count(self, digest: bytes) -> int:
        """Return how many records are held under a key, those just expired included."""
        return len(self._records.get(digest, ()))

    def digests(self, now_s: float) -> Sequence[bytes]:
        """Return the keys that have live records."""
        self.forget_expired(now_s)
        return tuple(self._records)

    def forget_expired(self, now_s: float) -> None:
        """Drop what has expired. Costs O(log n) per dropped record."""
        while self._expiries and self._expiries[0][0] <= now_s:
            expires_s, digest, owner = heapq.heappop(self._expiries)
            held = self._records.get(digest, {}).get(owner)
            if held is None or held.statement.expires_s != expires_s:
                continue  # replaced since; its own entry is further down
            del self._records[digest][owner]
            if not self._records[digest]:
                del self._records[digest]
            self._account(owner, -len(held.raw), records=-1)

    def _has_room(self, digest: bytes, owner: bytes, growth: int, *, is_new: bool) -> bool:
        limits = self._limits
        return (
            self._total_bytes + growth <= limits.total_bytes_max
            and self._owner_bytes.get(owner, 0) + growth <= limits.owner_bytes_max
            and not (is_new and len(self._records.get(digest, {})) >= limits.records_per_key_max)
        )

    def _account(self, owner: bytes, growth: int, *, records: int) -> None:
        self._count += records
        self._total_bytes += growth
        owner_bytes = self._owner_bytes.get(owner, 0) + growth
        if owner_bytes:
            self._owner_bytes[owner] = owner_bytes
        else:
            self._owner_bytes.pop(owner, None)

    def _rebuild_expiries(self) -> None:
        self._expiries = [
            (record.statement.expires_s, digest, owner)
            for digest, records in self._records.items()
            for owner, record in records.items()
        ]
        heapq.heapify(self._expiries)
