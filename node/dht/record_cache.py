"""What a reader has seen: every owner's newest statement under each key, until it expires."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from protocols.ports import DirectoryRecord
from protocols.records import Statement, live_records

KEYS_MAX: Final = 1024
"""A node looks up some tens of keys; beam search over a large expert grid looks up hundreds. Oldest use goes first."""
OWNERS_MAX: Final = 1024
"""Per key; as many as a storing node keeps."""


class RecordCache:
    """A union over time: a lookup that met a storing node which had not heard of somebody does not hide him.

    Who leaves says so, and that statement wins; who dies is dropped at expiry.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, dict[bytes, Statement]] = OrderedDict()

    def add(self, key: str, statements: Iterable[Statement], now_s: float) -> None:
        """Take statements that were found, and checked, under the key."""
        owners = self._keys.setdefault(key, {})
        self._keys.move_to_end(key)
        for owner in [owner for owner, known in owners.items() if known.expires_s <= now_s]:
            del owners[owner]
        for statement in statements:
            known = owners.get(statement.owner)
            if known is None:
                if len(owners) < OWNERS_MAX:
                    owners[statement.owner] = statement
            elif statement.supersedes(known):
                owners[statement.owner] = statement
        if len(self._keys) > KEYS_MAX:
            self._keys.popitem(last=False)

    def live(self, key: str, now_s: float) -> Sequence[DirectoryRecord]:
        """Return what can be believed now, sorted by PeerID."""
        return live_records(self._keys.get(key, {}).values(), now_s)
