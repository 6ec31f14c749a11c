"""One search of the directory, and what the peers asked hold under its key."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection

from node.dht.messages import RECORDS_MAX, Found, FoundRecord
from node.dht.process.record_store import StoredRecord
from protocols.ids import PeerID


class Search:
    """What the peers that are asked during one search hold under its key."""

    task: asyncio.Task[None]
    """Ends when all of them have been asked."""

    def __init__(self, held_here: Collection[StoredRecord]) -> None:
        self._collected: dict[bytes, StoredRecord] = {}
        self.something = asyncio.Event()
        """Somebody holds something."""
        self.take(held_here)

    def take(self, records: Collection[StoredRecord]) -> None:
        """Keep the newest word of each owner, of at most RECORDS_MAX owners."""
        for record in records:
            owner = bytes(record.statement.owner)
            known = self._collected.get(owner)
            if known is None:
                if len(self._collected) < RECORDS_MAX:
                    self._collected[owner] = record
            elif record.statement.supersedes(known.statement):
                self._collected[owner] = record
        if self._collected:
            self.something.set()

    def found(self) -> Found:
        return Found(
            records=tuple(
                FoundRecord(owner=PeerID(owner), raw=record.raw)
                for owner, record in itertools.islice(sorted(self._collected.items()), RECORDS_MAX)
            )
        )
