"""Forged decisions: a member that sends, beside what its honest core sends, what every other member must refuse.

Each forgery breaks one rule of records, ballots or reports, so nobody may act on it; what it costs the forger is blame.
Lies that members cannot see through are not among them; those about work are in tests.sim.pipeline.lying_member.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protocols.ids import PeerID
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Heartbeat,
    Message,
    Prepare,
    Records,
    Reduce,
    Refused,
    TallyReport,
)
from protocols.ledger.view import (
    ROUND_MAX,
    Ballot,
    Member,
    MemberTally,
    Record,
    StageCommit,
    pack_ids,
)

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

_ZERO: Final = bytes(32)
_NOBODY: Final = PeerID(b"nobody")


class Forger:
    """Sends one forgery at a time in the name of a peer, to whoever is there."""

    def __init__(self, world: PipelineWorld, peer: PipelinePeer) -> None:
        self._world = world
        self._peer = peer
        self._rng = random.Random(f"forger/{world.seed}/{peer.name}")

    def start(self, until_s: float) -> None:
        """Forge until the world heals."""
        self._until_s = until_s
        self._world.forgers.add(self._peer.peer_id)
        self._forge()

    def _forge(self) -> None:
        world, me = self._world, self._peer
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(0.3 * self._rng.random()), self._forge)
        record = me.ledger.record if me.up and not me.stopped else None
        if record is None or not record.members:
            return
        victim = self._rng.choice([peer for peer in world.peers.values() if peer is not me] or [me])
        forge = self._rng.choice(self._forgeries(record))
        world.forge(me.peer_id, victim.peer_id, forge())

    def _forgeries(self, record: Record) -> list[Callable[[], Message]]:
        me, after = self._peer.peer_id, record.index + 1
        mine, huge = Ballot(1, me), Ballot(ROUND_MAX + 1, me)
        # Nobody stands so often: under a ballot that somebody does propose with, it would be a vote, and no forgery.
        theirs = Ballot(ROUND_MAX // 2, self._rng.choice(record.members).peer)
        everything = pack_ids((1 << self._world.settings.microbatches + 9) - 1)
        return [
            *(3 * [lambda: self._accept(record)]),
            *(2 * [lambda: Accepted(after, theirs)]),
            lambda: Accept(
                after, dataclasses.replace(mine, peer=_NOBODY), self._view_record(record)
            ),
            lambda: Prepare(after, dataclasses.replace(mine, peer=_NOBODY)),
            lambda: Reduce(after, dataclasses.replace(mine, peer=_NOBODY), record.step + 1, ()),
            lambda: Heartbeat(record.index, record.digest(), huge),
            lambda: Refused(after, mine, huge, "because"),
            lambda: TallyReport(record.index, record.step + 1, everything),
            # Of another history, so no member takes it; impossible, so no outsider does.
            lambda: Records(
                (dataclasses.replace(self._impossible(record), previous=_ZERO),), after
            ),
        ]

    def _accept(self, record: Record) -> Accept:
        """Ask for a record that cannot follow, under a ballot that could be."""
        forged = self._rng.choice((self._impossible, self._uncounted, self._misplaced))(record)
        return Accept(record.index + 1, Ballot(self._rng.randint(1, 9), self._peer.peer_id), forged)

    def _view_record(self, record: Record) -> Record:
        """A record that could follow."""
        return Record(
            index=record.index + 1, step=record.step, lead=record.members[0].peer,
            members=record.members, previous=record.digest(),
        )  # fmt: skip

    def _rewritten(self, record: Record) -> Record:
        """A record of another history."""
        return dataclasses.replace(self._view_record(record), previous=_ZERO)

    def _misplaced(self, record: Record) -> Record:
        """A record that does not follow: its index, its step, its history is another one, or a member changed unnoticed."""
        follower, first = self._view_record(record), record.members[0]
        reborn = dataclasses.replace(first, incarnation=first.incarnation + 1)
        return self._rng.choice(
            (
                self._rewritten(record),
                dataclasses.replace(follower, index=record.index),
                dataclasses.replace(follower, step=record.step + 1),
                dataclasses.replace(follower, members=(reborn, *record.members[1:])),
            )
        )

    def _impossible(self, record: Record) -> Record:
        """A record with members that cannot be, or past the end of the run."""
        follower, members = self._view_record(record), record.members
        ballot, stages = Ballot(1, self._peer.peer_id), self._world.settings.stages
        first = members[0]
        changed = (
            {"members": (*members, first)},
            {"members": (dataclasses.replace(first, stage=stages), *members[1:])},
            {"members": (dataclasses.replace(first, since=record.index + 2), *members[1:])},
            {"let_go": (first.peer,)},
            {"lead": _NOBODY},
            {"step": record.step + 1, "reduced_at": ballot},
            {"step": self._world.settings.steps + 1},
        )
        return dataclasses.replace(follower, **self._rng.choice(changed))

    def _uncounted(self, record: Record) -> Record:
        """A step that does not count each microbatch once at each stage, or not as members did, or that nobody reduced."""
        microbatches, stages = self._world.settings.microbatches, self._world.settings.stages
        full = pack_ids((1 << microbatches) - 1)
        firsts = {m.stage: m for m in reversed(record.members)}
        invented = tuple(MemberTally(m.peer, full) for m in sorted(firsts.values(), key=_peer_of))
        real = tuple(
            MemberTally(m.peer, pack_ids(self._world.peers[m.peer].ledger.tally.counted))
            for m in record.members
        )
        tallies = self._rng.choice(
            (
                (MemberTally(_NOBODY, full),),
                tuple(MemberTally(m.peer, full) for m in record.members),
                (),
                invented,
                real,
            )
        )
        return dataclasses.replace(
            self._view_record(record), step=record.step + 1, tallies=tallies,
            reduced_at=Ballot(1, self._peer.peer_id), stages=(StageCommit(_ZERO, 1.0),) * stages,
        )  # fmt: skip


def _peer_of(member: Member) -> PeerID:
    return member.peer
