"""The models that wait to be averaged: at most one per part and neighbour, whatever is sent.

A part is averaged by itself: a push of a quarter of the tensors is one of four parts, and each has its own buffer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from protocols.gossip.messages import Push, Verdict
from protocols.ids import PeerID

REPLACED_MAX: Final = 16
"""Models of one sender and part that are looked at between two batches of ours. A peer sixteen times faster than we is
likely; beyond it we would spend more on its models than on our own."""


@dataclass(frozen=True, slots=True)
class Held:
    """A model that waits."""

    handle: int
    age: tuple[int, int]


@dataclass(slots=True)
class _Sender:
    newest: tuple[int, int]
    looked_at: int = 0
    """Since our last batch."""


class Inbox:
    """The buffers of one peer, one for each part."""

    def __init__(self, parts: int) -> None:
        self._held: list[dict[PeerID, Held]] = [{} for _ in range(parts)]
        self._senders: dict[tuple[PeerID, int], _Sender] = {}

    def offer(self, peer: PeerID, push: Push, handle: int) -> tuple[Verdict, int | None]:
        """Take a checked model of a neighbour, if it is new. Also returns the handle that it replaces."""
        sender = self._senders.get((peer, push.part))
        if sender is None:
            sender = self._senders[peer, push.part] = _Sender((-1, -1))
        if push.age <= sender.newest:
            return "old", None
        sender.looked_at += 1
        if sender.looked_at > REPLACED_MAX:
            return "too-often", None
        sender.newest = push.age
        buffer = self._held[push.part]
        replaced = buffer.get(peer)
        buffer[peer] = Held(handle, push.age)
        return "taken", replaced.handle if replaced is not None else None

    def batch_done(self) -> None:
        """Look at models again of those who sent too many."""
        for sender in self._senders.values():
            sender.looked_at = 0

    def count(self, part: int) -> int:
        """Return how many distinct senders' models wait."""
        return len(self._held[part])

    def total(self) -> int:
        return sum(map(len, self._held))

    def take(self, part: int) -> tuple[tuple[PeerID, int], ...]:
        """Empty a buffer: each model is averaged once."""
        taken = tuple((peer, held.handle) for peer, held in sorted(self._held[part].items()))
        self._held[part] = {}
        return taken

    def keep_only(
        self, peers: Collection[PeerID], known: Collection[PeerID] | None = None
    ) -> list[int]:
        """Let go of the models of who is no neighbour any more; return their handles.

        What was newest of a peer is remembered as long as it is `known` (None: as long as it is a neighbour): it may be a
        neighbour again, and then an old model is still old.
        """
        remembered = peers if known is None else known
        for key in [key for key in self._senders if key[0] not in remembered]:
            del self._senders[key]
        dropped: list[int] = []
        for buffer in self._held:
            gone = [peer for peer in buffer if peer not in peers]
            dropped.extend(buffer.pop(peer).handle for peer in gone)
        return dropped
