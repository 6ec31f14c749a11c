"""A node's disk: the journal, checkpoints and votes, and what power that goes takes along."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from protocols.ids import PeerID
from protocols.ledger.restart import Disk, Vote
from protocols.ledger.restart_messages import Claim
from protocols.ledger.view import Record, is_of_history

CLAIMS_KEPT = 3


def root_of(record: Record, stage: int, damage: str = "") -> bytes:
    """Return the hash of a stage's file at the step that a record committed."""
    return hashlib.sha256(repr((record.digest(), stage, damage)).encode()).digest()


@dataclass(slots=True)
class SimDisk:
    """What is durable, and what is being written."""

    newest: Record | None = None
    before: tuple[PeerID, ...] = ()
    claims: deque[Claim] = field(default_factory=lambda: deque(maxlen=CLAIMS_KEPT))
    """Newest first."""
    vote: Vote | None = None
    damaged: bool = False
    """The vote is there and cannot be read."""
    incarnation: int | None = None
    """As whom its node waits; None once that one has begun."""

    lives: int = 0
    """How often its node was in the run, or had its vote damaged: whom it waited as before is over."""

    def note(self, record: Record) -> None:
        """Keep a record, and where its epoch began."""
        before = self.newest
        if before is not None and (record.epoch, record.index) <= (before.epoch, before.index):
            return
        if before is not None and record.epoch != before.epoch:
            self.before = tuple(before.view)
        self.newest = record

    def in_run(self) -> None:
        """Whom it waited as is over, and a vote that cannot be read is replaced."""
        self.incarnation = None
        self.lives += 1
        if self.damaged:
            self.vote, self.damaged = None, False

    def join(self, record: Record) -> None:
        """Its node is a member by this record. What is of another history is put aside: it never counts again."""
        if self.newest is not None and not is_of_history(record, self.newest.epoch, 0):
            self.newest = self.vote = None
            self.claims.clear()
        self.note(record)
        self.in_run()

    def keep(self, record: Record, stage: int, damage: str = "") -> None:
        """A checkpoint is whole on the disk."""
        root = root_of(record, stage, damage)
        self.claims.appendleft(Claim(stage, record.step, record.epoch, record.digest(), root))

    def found(self) -> Disk | None:
        """Return what a process finds that starts now; None when there is nothing to go on from."""
        if self.newest is None or not self.claims:
            return None
        return Disk(
            newest=self.newest,
            before=self.before,
            claims=tuple(self.claims),
            vote=None if self.damaged else self.vote,
            may_vote=not self.damaged,
            incarnation=None if self.damaged else self.incarnation,
        )


def holders(disks: dict[PeerID, SimDisk], record: Record) -> dict[int, set[PeerID]]:
    """Return who has a checkpoint of the step that this record committed, by stage."""
    found: dict[int, set[PeerID]] = {}
    for peer, disk in disks.items():
        for claim in disk.claims:
            if claim.lineage == record.digest():
                found.setdefault(claim.stage, set()).add(peer)
    return found
