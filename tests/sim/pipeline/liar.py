"""Strangers that lie: authenticated, no members, and they send whatever might do harm to everybody they know.

What they must not achieve is what the checkers watch; that they are a nuisance is allowed. Members that lie are in
tests.sim.pipeline.lying_member and tests.sim.pipeline.forger.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from protocols.ids import PeerID
from protocols.ledger.grants import Grant
from protocols.ledger.leases import first_generation
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Evaluated,
    Heartbeat,
    Message,
    Prepare,
    Promise,
    Records,
    RecordsWanted,
    Reduce,
    Reduced,
    ReduceStuck,
    Refused,
    Rumour,
    TallyReport,
    WorkWanted,
)
from protocols.ledger.tally import Attempt
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage
from protocols.ledger.view import Ballot, Member, Record, ids_of, pack_ids
from tests.sim.pipeline.stage import MakeEvent, signature_for

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

_HUGE = 2**62
_ZERO = bytes(32)


class Liar:
    """Casts one lie at a time. It knows the newest record: members tell it to anybody who asks."""

    def __init__(self, world: PipelineWorld, number: int) -> None:
        self.peer_id = PeerID(b"liar%04d" % number)
        self._world = world
        self._rng = random.Random(f"liar/{world.seed}/{number}")

    def start(self, until_s: float) -> None:
        """Lie until the world heals."""
        self._until_s = until_s
        self._world.liars.add(self.peer_id)
        self._lie()

    def _lie(self) -> None:
        world = self._world
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(0.3 * self._rng.random()), self._lie)
        record = world.newest_record
        if record is None or not record.members:
            return
        victim = world.peers.get(self._rng.choice(record.members).peer)
        if victim is not None and victim.ledger.member is not None and self._rng.random() < 0.1:
            # To members only: an outsider believes whom it hears of first (protocols/ledger/README.md).
            victim.hear(self.peer_id, Rumour(record.index + self._rng.choice((1, 50))))
        elif victim is not None and victim.up and self._rng.random() < 0.2:
            victim.stage.settle(self.peer_id, self._question(record), lambda make: None)
        elif victim is not None and victim.up:
            world.forge(self.peer_id, victim.peer_id, self._message(record, victim))

    def _question(self, record: Record) -> AskSettle | AskClaim:
        """Ask about what does not exist, or try to close what does, with a lease that no lead has signed."""
        step, wild = record.step + 1, self._rng.choice((0, -1, 65536, _HUGE))
        generation = self._rng.choice((first_generation(record.index + 15, 0), _HUGE))
        everything = (1 << self._world.settings.microbatches) - 1
        grant = forged_grant(self._rng, self.peer_id, record, generation, everything)
        if self._rng.random() < 0.5:
            return AskSettle(0, self.peer_id, step, wild, Attempt(generation, 1), grant)
        ids = self._rng.choice((everything, 1 << 65535))
        return AskClaim(0, self.peer_id, step, ids, grant)

    def _message(self, record: Record, victim: PipelinePeer) -> Message:
        mine = Ballot(self._rng.choice((1, 7, _HUGE)), self.peer_id)
        theirs = Ballot(1, record.lead)
        after = record.index + self._rng.choice((1, 1, 1, 0, 2, 50))
        report = TallyReport(record.index, record.step + 1, b"\xff")
        lies: list[Callable[[], Message]] = [
            lambda: Heartbeat(after, _ZERO, self._rng.choice((mine, theirs))),
            lambda: Heartbeat(record.index, record.digest(), mine),
            lambda: Records((self._coup(record),), self._rng.choice((0, after))),
            lambda: Records((), _HUGE, cut=True),
            lambda: RecordsWanted(self._rng.choice((0, after, _HUGE))),
            lambda: report,
            lambda: Prepare(after, self._rng.choice((mine, theirs))),
            lambda: Promise(after, theirs, mine, self._coup(record), report),
            lambda: Reduce(after, self._rng.choice((mine, theirs)), record.step + 1, ()),
            lambda: Reduced(after, theirs, _ZERO, 1.0, 1.0),
            lambda: ReduceStuck(after, theirs, victim.peer_id),
            lambda: Accept(after, self._rng.choice((mine, theirs)), self._coup(record)),
            lambda: Accepted(after, theirs),
            lambda: Refused(after, theirs, Ballot(_HUGE, self.peer_id), "because"),
            lambda: WorkWanted(record.step + 1, 0, b"\xff" * 8),
            lambda: WorkWanted(record.step + self._rng.choice((0, 1, 9)), 4096, b"", _HUGE),
            lambda: Evaluated(record.step + 1, self._rng.choice((0, 1, _HUGE)), -99.0),
        ]
        return self._rng.choice(lies)()

    def _coup(self, record: Record) -> Record:
        """A record that makes us the only member."""
        member = Member(self.peer_id, 1, 0, record.index + 1)
        return Record(
            index=record.index + 1,
            step=record.step,
            lead=self.peer_id,
            members=(member,),
            previous=self._rng.choice((record.digest(), _ZERO)),
        )


def forged_grant(
    rng: random.Random, me: PeerID, record: Record, generation: int, ids: int
) -> Grant:
    """In the lead's name and not signed by it, or signed by one that never led."""
    lead = rng.choice((record.lead, me))
    signature = signature_for(me, me) if lead == me else b"forged"
    return Grant(lead, record.step + 1, generation, pack_ids(ids), signature)


class RogueTrainer:
    """Asks members to count what is not leased to it: also what others count, and while the step is committed.

    Its attempts are such as a lead deals, and its lease is forged, or another trainer's.
    """

    def __init__(self, world: PipelineWorld, number: int) -> None:
        self.peer_id = PeerID(b"rogue%03d" % number)
        self._world = world
        self._rng = random.Random(f"rogue/{world.seed}/{number}")

    def start(self, until_s: float) -> None:
        """Ask until the world heals."""
        self._until_s = until_s
        self._ask()

    def _ask(self) -> None:
        world = self._world
        if world.clock.now_s >= self._until_s:
            return
        world.clock.after(world.scaled(2.0 * self._rng.random()), self._ask)
        record = world.newest_record
        if record is None or not record.members:
            return
        member = self._rng.choice(record.members)
        victim = world.peers[member.peer]
        if not victim.up or victim.stopped:
            return
        generation = first_generation(record.index, 0) + self._rng.randrange(8)
        last = member.stage == world.settings.stages - 1
        count = self._rng.random() < 0.9  # what is not to be counted needs no lease
        ask = AskStage(
            0, member.peer, "loss" if last else "backward", record.step + 1,
            self._microbatch(victim), member.stage, count=count,
            attempt=Attempt(generation, self._rng.randrange(8)),
            grant=self._grant(record, generation), deadline_s=1.0,
        )  # fmt: skip
        victim.stage.serve(ask, _Unheard(self.peer_id))

    def _grant(self, record: Record, generation: int) -> Grant:
        everything = (1 << self._world.settings.microbatches) - 1
        journeys = [
            j for p in self._world.peers.values() if p.up for j in p.trainer.journeys.values()
        ]
        if journeys and self._rng.random() < 0.5:
            return self._rng.choice(journeys).grant
        if self._rng.random() < 0.1:  # its own, of nothing
            grant = Grant(record.lead, record.step + 1, generation, b"")
            return replace(grant, signature=signature_for(record.lead, self.peer_id))
        return forged_grant(self._rng, self.peer_id, record, generation, everything)

    def _microbatch(self, victim: PipelinePeer) -> int:
        """Choose any, or one that the victim has counted: to have it counted again."""
        some = self._rng.randrange(self._world.settings.microbatches)
        counted = ids_of(victim.ledger.tally.counted)
        if counted and self._rng.random() < 0.5:
            some = self._rng.choice(counted)
        return self._rng.choice((some, some, some, self._world.settings.microbatches, _HUGE))


class _Unheard:
    """A call whose answer nobody reads."""

    def __init__(self, trainer_id: PeerID) -> None:
        self.trainer_id = trainer_id

    def wanted(self) -> bool:
        return True

    def answer(self, make: MakeEvent) -> None:
        pass
