"""Which prefixes are looked up in the directory, and when: what searches wait for first, then what is due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from protocols.experts.uid import Prefix
from protocols.experts.view import HostStatement, PrefixView

LOOKS_AT_ONCE: Final = 16
PATIENCE_S: Final = 1.0
"""A search does without what has not been answered by then."""
LATE_S: Final = 5.0
"""A look that has not been answered by then holds up no other one; its answer still counts, unless a later one has come."""
TOLD_S: Final = 1.0
"""So often is told what is known, though some look is always under way: so it is where many prefixes are watched."""
AGAIN_S: Final = 0.5
"""A prefix is not looked up again sooner, however many calls fail."""
TICK_S: Final = 0.1
"""So often is looked whether anything is due."""


class LookUps:
    """The looks of one node. Call `begin` every TICK_S, and whenever something was asked for or has ended."""

    def __init__(self, view: PrefixView) -> None:
        self._view = view
        self._hurried: deque[Prefix] = deque()
        self._under_way: dict[Prefix, float] = {}
        """With when it began."""
        self._failed_s: dict[Prefix, float] = {}
        """When the latest look began that failed, until a later one succeeds."""
        self._told_s = -math.inf

    def hurry(self, prefixes: Iterable[Prefix], now_s: float) -> None:
        """Look these up before others: a search waits for them, or what is known of them has shown to be wrong."""
        known = {*self._hurried}
        self._hurried.extend(
            prefix
            for prefix in dict.fromkeys(prefixes)
            if prefix not in known and now_s - self._view.asked_s(prefix) >= AGAIN_S
        )

    def begin(self, now_s: float) -> Sequence[Prefix]:
        """Return what is to be looked up from now on."""
        begun = []
        for prefix in [p for p, at_s in self._under_way.items() if now_s - at_s >= LATE_S]:
            del self._under_way[prefix]
        for prefix in [*self._hurried, *self._view.due(now_s)]:
            if len(self._under_way) >= LOOKS_AT_ONCE:
                break
            failed_s = self._failed_s.get(prefix, -math.inf)
            if prefix not in self._under_way and now_s - failed_s >= AGAIN_S:
                self._under_way[prefix] = now_s
                begun.append(prefix)
        started = {*begun}
        self._hurried = deque(prefix for prefix in self._hurried if prefix not in started)
        return begun

    def began_to_answer(
        self, prefix: Prefix, statements: Iterable[HostStatement], *, asked_s: float
    ) -> None:
        """Take what the first peer has that holds something: a search that knows nothing of a prefix need not wait for all."""
        self._view.learn(prefix, statements, asked_s=asked_s, whole=False)

    def ended(
        self,
        prefix: Prefix,
        statements: Iterable[HostStatement] | None,
        *,
        asked_s: float,
        now_s: float,
    ) -> bool:
        """Take what the directory had; None: it failed.

        Returns whether it is time to tell what is known: when no look is under way any more, and every TOLD_S.
        """
        if self._under_way.get(prefix, math.inf) <= asked_s:
            del self._under_way[prefix]
        # Answers overtake each other: one that is late must not hide that a later look has failed.
        failed_s = self._failed_s.get(prefix, -math.inf)
        if statements is None:
            self._failed_s[prefix] = max(asked_s, failed_s)
        else:
            if asked_s >= failed_s:
                self._failed_s.pop(prefix, None)
            self._view.learn(prefix, statements, asked_s=asked_s)
        if self._under_way and now_s - self._told_s < TOLD_S:
            return False
        self._told_s = now_s
        return True
