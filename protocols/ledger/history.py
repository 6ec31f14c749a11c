"""The newest records in a row, kept so that others can catch up."""

from __future__ import annotations

from collections import deque
from typing import Final

from protocols.ledger.messages import Records
from protocols.ledger.view import Record

HISTORY_RECORDS: Final = 64
"""A member further behind than this has missed more steps than it could have buffered: it joins anew."""
_MEMBERS_PER_MESSAGE: Final = 256
"""Bounds one answer to some 30 KB, so that catching up never crowds out heartbeats."""


class History:
    """Consecutive records, the newest last."""

    __slots__ = ("_records",)

    def __init__(self) -> None:
        self._records: deque[Record] = deque(maxlen=HISTORY_RECORDS)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Append; a gap (an outsider hears only of some records) starts the row anew."""
        if self._records and record.index != self._records[-1].index + 1:
            self._records.clear()
        self._records.append(record)

    def answer(self, first: int) -> Records | None:
        """Return the records from `first` on, as many as one message takes; None when there are none."""
        if not self._records or first > self._records[-1].index:
            return None
        newest, oldest = self._records[-1].index, self._records[0].index
        limit = max(1, _MEMBERS_PER_MESSAGE // (1 + len(self._records[-1].members)))
        start = max(first, oldest) - oldest
        wanted = tuple(self._records)[start : start + limit]
        return Records(wanted, newest, cut=first < oldest)
