"""A run's records, made as members make them: chained by digest, tallies of the members of the record before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from protocols.ids import PeerID
from protocols.ledger.view import (
    Ballot,
    Member,
    MemberTally,
    Record,
    StageCommit,
    mask_of,
    pack_ids,
)

PEERS = tuple(PeerID(bytes([0, index])) for index in range(1, 9))
HASH = bytes(32)


def members(*stages: int) -> tuple[Member, ...]:
    """PEERS[0] at the first stage named, PEERS[1] at the second, and so on."""
    return tuple(Member(peer, 1, stage, 0) for peer, stage in zip(PEERS, stages, strict=False))


class Log:
    """A run that grows by what the test says happened."""

    def __init__(self, *stages: int) -> None:
        self.stages = max(stages) + 1
        genesis = Record(index=0, step=0, lead=PEERS[0], members=members(*stages))
        self.records = [genesis]

    def changes(self, after: Iterable[Member]) -> None:
        """Append a view record."""
        self._append(members=tuple(after))

    def commits(
        self, counted: Mapping[PeerID, Iterable[int]], after: Iterable[Member] | None = None
    ) -> None:
        """Append a step record."""
        last = self.records[-1]
        self._append(
            step=last.step + 1,
            members=last.members if after is None else tuple(after),
            reduced_at=Ballot(1, last.lead),
            tallies=tuple(
                MemberTally(peer, pack_ids(mask_of(ids))) for peer, ids in counted.items()
            ),
            stages=(StageCommit(HASH, 1.0),) * self.stages,
            loss=1.0,
        )

    def _append(self, **changes: object) -> None:
        last = self.records[-1]
        blank = Record(
            index=last.index + 1,
            step=last.step,
            epoch=last.epoch,
            lead=last.lead,
            members=last.members,
            previous=last.digest(),
        )
        self.records.append(dataclasses.replace(blank, **changes))  # type: ignore[arg-type]
