"""One fragment of the model: the history of its outer state, and the round that it is in."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal

from protocols.collective.messages import HISTORY_MAX, FragmentStanding
from protocols.ids import PeerID

FIRST_LINE: Final = hashlib.blake2b(b"murmura outer state", digest_size=16).digest()
"""Of the parameters that the run begins with."""


def line_after(line: bytes, version: int, group: Collection[PeerID]) -> bytes:
    """Name the state after a round: peers that averaged the same at the same steps, from the same state, have the same."""
    digest = hashlib.blake2b(line + version.to_bytes(8, "big"), digest_size=16)
    for peer in sorted(group):
        digest.update(len(peer).to_bytes(2, "big") + peer)
    return digest.digest()


@dataclass(slots=True)
class Fragment:
    """What the core knows of one fragment.

    | round | what happens |
    |---|---|
    | none | it is trained |
    | beginning | its outer gradient is being taken |
    | averaging | the group exchanges; training goes on for a while |
    | arrived | the mean is here, and waits for the end of the overlap |
    """

    version: int = 0
    """Step after which it was averaged last."""
    lines: tuple[bytes, ...] = (FIRST_LINE,)
    """Of its outer state, newest first."""
    trained: int = 0
    """Local steps since what we last handed in."""
    round: Literal["none", "beginning", "averaging", "arrived"] = "none"
    round_version: int = 0
    """Of the round it is in, or was in last, whatever came of it."""
    begun_at_step: int = 0
    handed_in: int = 0
    """Local steps in the outer gradient that is on its way."""
    group: tuple[PeerID, ...] = field(default=())
    has_missed: bool = False
    """Its last round."""
    called_to: int = 0
    """The version of a round that others are in, and that we join though its step has passed."""
    cancelled: int = 0
    """The version of the last round that we gave up."""
    may_count: int = 0
    """The version of the first round that we missed and that others may have finished with our outer gradient; 0: of none."""

    @property
    def line(self) -> bytes:
        return self.lines[0]

    @property
    def standing(self) -> FragmentStanding:
        return FragmentStanding(
            self.version, self.lines, self.round_version if self.round != "none" else 0
        )

    def begin(self, *, version: int, step: int) -> None:
        """Take the outer gradient for a round."""
        self.round = "beginning"
        self.has_missed = False
        self.round_version = version
        self.begun_at_step = step
        self.handed_in = self.trained

    @property
    def next_lines(self) -> tuple[bytes, ...]:
        """What its history will be with the mean that has arrived."""
        line = line_after(self.line, self.round_version, self.group)
        return (line, *self.lines)[:HISTORY_MAX]

    def averaged(self) -> None:
        """The mean has become part of the outer state."""
        self.lines = self.next_lines
        self.version = self.round_version
        self.trained -= self.handed_in
        self.may_count = 0
        self.round = "none"

    def has_counted(self, version: int, *, has_ours: bool) -> bool:
        """Tell whether a state of this version, after a round we missed, has what we handed in. When more rounds have followed
        it is taken for counted: to lose it is better than to count it twice."""
        if not self.may_count or version < self.may_count:
            return False
        return has_ours if version == self.may_count else True

    def adopt(self, version: int, lines: tuple[bytes, ...], *, counted: bool) -> None:
        """Somebody's outer state is ours. What we have trained since stays."""
        self.version, self.lines = version, lines[:HISTORY_MAX]
        if counted:
            self.trained -= self.handed_in
            self.may_count = 0
