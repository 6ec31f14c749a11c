"""A directory in memory: the records, signatures and expiries are real, the DHT between the peers is a dictionary.

Faults are set on one peer's directory at a point the test chooses: `available`, `stale`, `crash`. Time is what
`now_s` says, trio's clock by default, so with a MockClock ten minutes of expiry cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import trio

from node.dht.record_cache import RecordCache
from node.identity import verify_signature
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord, Signer
from protocols.records import (
    Author,
    RecordRefusedError,
    Statement,
    key_digest,
    open_record_untrusted,
)

_RENEWED_AT = 0.6
"""Share of the lifetime after which a record is written again, as the real one does."""


class MemoryDht:
    """What several MemoryDirectory share."""

    def __init__(self, now_s: Callable[[], float] = trio.current_time) -> None:
        self.now_s = now_s
        self.records: dict[str, dict[bytes, bytes]] = {}
        self.directories: list[MemoryDirectory] = []

    def directory(self, signer: Signer) -> MemoryDirectory:
        """Return the directory of one more peer."""
        directory = MemoryDirectory(self, signer)
        self.directories.append(directory)
        return directory

    def plant(self, key: str, owner: bytes, raw: bytes) -> None:
        """Put anything at all under a sub-key, as a dishonest storing node could."""
        self.records.setdefault(key, {})[owner] = raw

    def renew(self) -> None:
        """Write again what living peers would have written by now."""
        for directory in self.directories:
            directory.renew()


@dataclass(slots=True)
class _Announcement:
    value: bytes
    lifetime_s: float
    written_s: float


class MemoryDirectory:
    """Implements protocols.ports.Directory for one peer."""

    def __init__(self, dht: MemoryDht, signer: Signer) -> None:
        self._dht = dht
        self._author = Author(signer)
        self._us = signer.peer_id
        self._announcements: dict[str, _Announcement] = {}
        self._cache = RecordCache()
        self._verify = lru_cache(maxsize=4096)(verify_signature)
        self.refused: Counter[str] = Counter()
        self.available = True
        """False: nothing reaches the others, and reads are answered from memory, as while the dht process restarts."""
        self.stale = False
        """True: reads return what they returned before, expired records left out."""

    @property
    def peer_id(self) -> PeerID:
        return self._us

    async def announce(self, key: str, value: bytes, lifetime_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        self._write(key, value, lifetime_s)
        return self.available

    async def withdraw(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self._announcements.pop(key, None)
        withdrawal = self._author.withdraw(key, now_s=self._dht.now_s())
        if withdrawal is not None:
            self._publish(key, *withdrawal)

    async def look_up(
        self, key: str, *, first: Callable[[Sequence[DirectoryRecord]], None] | None = None
    ) -> Sequence[DirectoryRecord]:
        await trio.lowlevel.checkpoint()
        if self.available and not self.stale:
            self._dht.renew()
            self._cache.add(key, self._read_untrusted(key), self._dht.now_s())
            if first is not None and (live := self._cache.live(key, self._dht.now_s())):
                first(live)
        return self._cache.live(key, self._dht.now_s())

    def crash(self) -> None:
        """End without a word: records stay until they expire."""
        self.renew()
        self._announcements.clear()

    def renew(self) -> None:
        """Write again what is due. Called by readers, so that no task has to run in the background."""
        for key, item in list(self._announcements.items()):
            if self._dht.now_s() - item.written_s >= _RENEWED_AT * item.lifetime_s:
                self._write(key, item.value, item.lifetime_s)

    def _write(self, key: str, value: bytes, lifetime_s: float) -> None:
        now_s = self._dht.now_s()
        statement, raw = self._author.announce(key, value, now_s=now_s, lifetime_s=lifetime_s)
        self._announcements[key] = _Announcement(value, lifetime_s, now_s)
        self._publish(key, statement, raw)

    def _publish(self, key: str, statement: Statement, raw: bytes) -> None:
        self._cache.add(key, [statement], self._dht.now_s())
        if self.available:
            self._dht.records.setdefault(key, {})[self._us] = raw

    def _read_untrusted(self, key: str) -> list[Statement]:
        now_s = self._dht.now_s()
        statements = []
        for owner, raw in self._dht.records.get(key, {}).items():
            try:
                statements.append(
                    open_record_untrusted(
                        raw, digest=key_digest(key), owner=owner, now_s=now_s, verify=self._verify
                    )
                )
            except RecordRefusedError as error:
                self.refused[error.refusal] += 1
        return statements
