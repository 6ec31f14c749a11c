"""How a run goes on that has lost all of its members at once: on which step, with whom, agreed once. A pure core.

Each node that comes back with checkpoints tells the members of the newest record that it knows what it has. A quorum of
the members that the newest record of all names decides the first record of the next epoch: it goes on from the newest
step of which every stage is on some of their disks, with the nodes that hold it.

Rules of this file:
  - Deciding is single-decree Paxos, one instance per epoch. What a node promises or accepts is on its disk before it is
    sent (`WriteVote`), so a node that loses power again cannot take it back. Who cannot read its vote does not vote again
    (`Disk.may_vote`) until it has been in the run.
  - A node that loses power while it waits comes back as the same member (`Disk.incarnation`): it has been in no run since,
    so it has nothing to forget, and a first record that names it is still about it.
  - The acceptors are the members of the newest record. A quorum of them that is back from the disk means that no quorum
    of the old epoch lives; so the old epoch decides nothing any more.
  - A run that all have left in good order ends with a record that names nobody: those it lets go decide.
  - A first record whose members have gone again, before anybody went on from it, is still the newest record: its own
    members decide the epoch after it.
  - A checkpoint counts if it is of the newest record's history: of its epoch, or of a step at or before its beginning.
    All others were overtaken; a node that has only those joins as a newcomer.
  - What an operator's word has begun is a history of its own (protocols.ledger.epoch); checkpoints of another one never count.
  - Replicas with different files for one step cannot both be right: the file that most have is taken, the others join.
  - Only members of the newest record that we know are listened to. They are believed, as everywhere in the ledger.

| phase | what ends it |
|---|---|
| waiting | a record that names us: we begin. The word of a member that the run goes on: we join |
| joining | the shell says that we are in; or, after a while, nothing: waiting again |
| done | |
"""

from __future__ import annotations

import dataclasses
import enum
import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from protocols.core import Tick
from protocols.ids import PeerID
from protocols.ledger.epoch import begun_alone, is_too_far
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart_messages import (
    Back,
    Claim,
    Decided,
    RestartAccept,
    RestartAccepted,
    RestartMessage,
    RestartPrepare,
    RestartPromise,
    RestartRefused,
    Running,
)
from protocols.ledger.reunion import gives_way
from protocols.ledger.view import (
    FORK_ABSENT_MAX,
    FORKS_MAX,
    INDEX_MAX,
    ROUND_MAX,
    Ballot,
    Fork,
    Member,
    Record,
    View,
    began_with,
    is_of_history,
    is_overtaken,
    shape_problem,
)
from protocols.schema import Natural

EPOCH_GAP: Final = 1024
"""Indices left out between two epochs: more than any member may be ahead of the newest record that is known."""
_PRESENT_BEATS: Final = 6
"""A peer that was not heard for so many beats is gone again."""
_SETTLE_SILENCES: Final = 3.0
"""How long others that may come back are waited for once a quorum is there."""
_TRY_SILENCES: Final = 4.0
_JOIN_SILENCES: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What an acceptor must not forget."""

    epoch: Natural
    promised: Ballot
    accepted_at: Ballot | None = None
    accepted: Record | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What a node finds on its disk when it comes back."""

    newest: Record
    """By epoch and index, of its journal, its checkpoints and its vote."""
    before: tuple[PeerID, ...] = ()
    """Who was a member when it began."""
    claims: tuple[Claim, ...] = ()
    """Newest first."""
    vote: Vote | None = None
    may_vote: bool = True
    """False when there is a vote that cannot be read: nobody knows what this node has promised."""
    incarnation: int | None = None
    """As whom it took part in a life that ended before it had begun or joined: still the same one."""


# --- events ---


@dataclass(frozen=True, slots=True)
class Heard:
    now_s: float
    peer: PeerID
    message: RestartMessage


@dataclass(frozen=True, slots=True)
class VoteWritten:
    """The oldest WriteVote is on disk, or could not be written."""

    now_s: float
    ok: bool


@dataclass(frozen=True, slots=True)
class InRun:
    """The ledger says that we are a member."""

    now_s: float


Event: TypeAlias = Tick | Heard | VoteWritten | InRun


# --- effects ---


@dataclass(frozen=True, slots=True)
class Tell:
    """Cast a message; never to ourselves."""

    peer: PeerID
    message: RestartMessage


@dataclass(frozen=True, slots=True)
class WriteVote:
    """Have this on disk, then say VoteWritten. One after the other."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class NoteEpoch:
    """An epoch began with this record, without us: keep that for the next time."""

    record: Record


@dataclass(frozen=True, slots=True)
class Begin:
    """We are a member by this record: load this checkpoint and go on."""

    record: Record
    claim: Claim


@dataclass(frozen=True, slots=True)
class Join:
    """The run goes on without us: join it as a newcomer. Comes again with False when that leads to nothing."""

    wanted: bool


Effect: TypeAlias = Tell | WriteVote | NoteEpoch | Begin | Join


class Phase(enum.Enum):
    WAITING = enum.auto()
    JOINING = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True)
class _Try:
    """One ballot of ours."""

    ballot: Ballot
    until_s: float
    promises: dict[PeerID, RestartPromise] = dataclasses.field(default_factory=dict)
    record: Record | None = None
    """What we propose, once a quorum has promised."""
    accepted: set[PeerID] = dataclasses.field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A step that is complete among those present, and who holds what of it."""

    step: int
    holders: Mapping[PeerID, int]
    """Peer -> stage, of those with the file that most have."""


class Restart:
    """One node's part in starting a run again.

    Args:
      incarnation: of the member that we shall be.
      new_epoch: an operator's word that those who are back may go on without a quorum.
      gives_way: our history ends, and we begin by joining another one (protocols.ledger.reunion).
    """

    def __init__(
        self,
        me: PeerID,
        incarnation: int,
        settings: LedgerSettings,
        disk: Disk,
        rng: random.Random,
        *,
        now_s: float,
        new_epoch: bool = False,
        gives_way: bool = False,
    ) -> None:
        self.me = me
        self.phase = Phase.WAITING
        self.waiting_because = "back from the disk, looking for the others"
        self._incarnation = incarnation
        self._settings = settings
        self._rng = rng
        self._new_epoch = new_epoch
        self._newest = disk.newest
        self._before = frozenset(disk.before)
        self._claims = disk.claims
        self._vote = disk.vote
        self._may_vote = disk.may_vote
        self._replies: deque[Tell] = deque()
        """What waits for its vote to be on disk, oldest first."""
        self._backs: dict[PeerID, tuple[float, Back]] = {}
        self._try: _Try | None = None
        self._round_seen = disk.vote.promised.round if disk.vote is not None else 0
        self._settled_at_s = now_s + _SETTLE_SILENCES * settings.silence_s
        self._not_before_s = now_s
        self._join_until_s = math.inf
        self._told_by: PeerID | None = None
        """Who said that the run goes on."""
        self._next_beat_s = now_s
        if gives_way:
            self._join(now_s)

    @property
    def wake_at_s(self) -> float:
        return math.inf if self.phase is Phase.DONE else self._next_beat_s

    @property
    def members(self) -> View:
        """Who decides how the run goes on."""
        return _voters(self._newest)

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; return what to do, in order."""
        if isinstance(event, VoteWritten):
            return self._written(event)
        if self.phase is Phase.DONE:
            return []
        match event:
            case Tick():
                return self._tick(event.now_s)
            case Heard():
                return self._heard(event.now_s, event.peer, event.message)
            case InRun():
                self.phase = Phase.DONE
                return []
            case _:
                assert_never(event)

    # --- what others say ---

    def _heard(self, now_s: float, peer: PeerID, message: RestartMessage) -> list[Effect]:
        if isinstance(message, Running) and self._ends(peer, message.record):
            self._join(now_s, peer)
            return [Join(True)]
        if peer not in self.members or peer == self.me:
            return []
        match message:
            case Back():
                return self._back(now_s, peer, message)
            case Running():
                return self._running(now_s, peer, message.record)
            case Decided():
                return self._decided(now_s, message.record)
            case RestartPrepare() | RestartAccept():
                return self._asked(peer, message)
            case RestartPromise() | RestartAccepted() | RestartRefused():
                return self._answered(now_s, peer, message)
            case _:
                assert_never(message)

    def _back(self, now_s: float, peer: PeerID, back: Back) -> list[Effect]:
        if self._is_impossible(back.newest):
            return []
        known = self._backs.get(peer)
        if known is not None and known[1].incarnation > back.incarnation:
            return []  # late, from a life that is over
        if known is None or known[1].incarnation != back.incarnation:
            self._settled_at_s = now_s + _SETTLE_SILENCES * self._settings.silence_s
        self._backs[peer] = now_s, back
        if _order(back.newest) > _order(self._newest):
            self._learn(back.newest)
        if self.phase is Phase.JOINING and peer == self._told_by:
            self.phase = Phase.WAITING  # the run that it told us of does not go on
            return [Join(False)]
        return []

    def _is_impossible(self, record: Record) -> bool:
        """Tell whether it is none of this run's, or one after which no epoch could be numbered."""
        return (
            is_too_far(record.epoch, self._newest.epoch)
            or record.index > INDEX_MAX - EPOCH_GAP
            or shape_problem(record, stages=self._settings.stages) is not None
        )

    def _learn(self, newest: Record) -> None:
        """There is a newer record: its members decide, and what was tried before is void."""
        self._before |= frozenset(self.members)
        self._newest = newest
        self._backs = {
            peer: found for peer, found in self._backs.items() if peer in _voters(newest)
        }
        self._try = None

    def _running(self, now_s: float, peer: PeerID, record: Record) -> list[Effect]:
        if self.phase is not Phase.WAITING or self._is_impossible(record):
            return []
        begin = self._begin(record)
        if begin:
            return begin
        self._join(now_s, peer)
        return [Join(True)]

    def _join(self, now_s: float, told_by: PeerID | None = None) -> None:
        self.phase = Phase.JOINING
        self._told_by = told_by
        self._join_until_s = now_s + _JOIN_SILENCES * self._settings.silence_s
        self.waiting_because = "the run goes on: joining it as a newcomer"

    def _ends(self, peer: PeerID, record: Record) -> bool:
        """Tell whether our history ends because another one goes on, which is longer."""
        if self.phase is not Phase.WAITING:
            return False
        if self._is_impossible(record):
            return False
        return gives_way(self._newest, record, speaker=peer)

    def _decided(self, now_s: float, record: Record) -> list[Effect]:
        """A first record of an epoch. If it does not name us as we are now, its members decide what follows."""
        if _order(record) <= _order(self._newest):
            return []
        if self._is_impossible(record):
            return []
        begin = self._begin(record) if self.phase is Phase.WAITING else []
        if begin:
            return begin
        self._learn(record)
        return [NoteEpoch(record)]

    def _begin(self, record: Record) -> list[Effect]:
        """Become a member, if this record names us in this life, and we have what it goes on from."""
        member = record.view.find(self.me)
        if member is None or member.incarnation != self._incarnation:
            return []
        for claim in self._claims:
            if (claim.stage, claim.step) == (member.stage, record.step) and self._counts(claim):
                self.phase = Phase.DONE
                return [Begin(record, claim)]
        return []

    # --- acceptor ---

    def _asked(self, peer: PeerID, asked: RestartPrepare | RestartAccept) -> list[Effect]:
        """Promise or accept, unless we have promised more. Nobody who goes, or has gone, on with the run votes."""
        if self.phase is not Phase.WAITING or asked.epoch != self._newest.epoch + 1:
            return []
        if not self._may_vote or self.me not in self.members:
            return []
        ballot = asked.ballot
        if ballot.peer != peer or ballot.round > ROUND_MAX:
            return []
        self._round_seen = max(self._round_seen, ballot.round)
        vote = self._present_vote()
        if vote is not None and ballot < vote.promised:
            return [Tell(peer, RestartRefused(asked.epoch, vote.promised))]
        reply: RestartMessage
        if isinstance(asked, RestartPrepare):
            accepted_at = vote.accepted_at if vote is not None else None
            accepted = vote.accepted if vote is not None else None
            vote = Vote(
                epoch=asked.epoch, promised=ballot, accepted_at=accepted_at, accepted=accepted
            )
            reply = RestartPromise(asked.epoch, ballot, accepted_at, accepted)
        else:
            if self._why_not(asked.record) is not None:
                return []
            vote = Vote(
                epoch=asked.epoch, promised=ballot, accepted_at=ballot, accepted=asked.record
            )
            reply = RestartAccepted(asked.epoch, ballot)
        return self._write(vote, Tell(peer, reply))

    def _present_vote(self) -> Vote | None:
        """Return our vote for the next epoch; those for epochs that have begun are history."""
        vote = self._vote
        return vote if vote is not None and vote.epoch == self._newest.epoch + 1 else None

    def _why_not(self, record: Record) -> str | None:
        newest = self._newest
        if (record.epoch, record.forks) != (newest.epoch + 1, newest.forks):
            return "it is not of the next epoch of this history"
        if record.commits_step or not record.members:
            return "it is not the first of an epoch"
        return shape_problem(record, stages=self._settings.stages)

    def _write(self, vote: Vote, reply: Tell) -> list[Effect]:
        self._vote = vote
        self._replies.append(reply)
        return [WriteVote(vote)]

    def _written(self, written: VoteWritten) -> list[Effect]:
        reply = self._replies.popleft()
        if not written.ok:
            self.waiting_because = "the vote cannot be written to disk, so this node does not vote"
            return []
        if self.phase is Phase.DONE:
            return []
        if reply.peer == self.me:
            assert isinstance(reply.message, RestartPromise | RestartAccepted)
            return self._answered(written.now_s, self.me, reply.message)
        return [reply]

    # --- proposer ---

    def _answered(
        self,
        now_s: float,
        peer: PeerID,
        message: RestartPromise | RestartAccepted | RestartRefused,
    ) -> list[Effect]:
        trying = self._try
        if trying is None or message.epoch != self._newest.epoch + 1:
            return []
        if isinstance(message, RestartRefused):
            if trying.ballot < message.promised and message.promised.round <= ROUND_MAX:
                self._round_seen = max(self._round_seen, message.promised.round)
                self._give_up_try(now_s)
            return []
        if message.ballot != trying.ballot:
            return []
        if isinstance(message, RestartPromise):
            trying.promises[peer] = message
            return self._propose(now_s) if trying.record is None else []
        trying.accepted.add(peer)
        if trying.record is None or not self.members.is_quorum(trying.accepted):
            return []
        return self._announce(now_s, trying.record)

    def _propose(self, now_s: float) -> list[Effect]:
        """With promises of a quorum: propose what may have been decided, else what those present can go on from."""
        trying = self._try
        assert trying is not None
        if not self.members.is_quorum(trying.promises):
            return []
        accepted = [
            (promise.accepted_at, promise.accepted)
            for promise in trying.promises.values()
            if promise.accepted_at is not None and promise.accepted is not None
        ]
        if accepted:
            record: Record | None = max(accepted, key=lambda pair: pair[0])[1]
            assert record is not None
            if self._why_not(record) is not None:
                return []
        else:
            plan = self._plan(now_s)
            record = self._first_record(plan) if plan is not None else None
        if record is None:
            return []
        trying.record = record
        return self._ask(RestartAccept(record.epoch, trying.ballot, record), trying.promises)

    def _announce(self, now_s: float, record: Record) -> list[Effect]:
        told: list[Effect] = [
            Tell(peer, Decided(record)) for peer in self.members if peer != self.me
        ]
        return told + self._decided(now_s, record)

    def _first_record(self, plan: _Plan, *, alone: bool = False) -> Record:
        """Return what the next epoch begins with. Alone, an operator's word begins it, and those who are not there are named."""
        newest = self._newest
        epoch, forks = newest.epoch + 1, newest.forks
        if alone:
            epoch = begun_alone(newest.epoch, self._rng)
            absent = sorted({*self.members, *self._before} - plan.holders.keys())
            fork = Fork(
                epoch=epoch,
                after=newest.epoch,
                step=plan.step,
                absent=tuple(absent[:FORK_ABSENT_MAX]),
            )
            forks = (*forks, fork)[-FORKS_MAX:]
        index = self._newest.index + EPOCH_GAP
        incarnations = {peer: back.incarnation for peer, (_, back) in self._backs.items()}
        incarnations[self.me] = self._incarnation
        members = tuple(
            Member(peer, incarnations[peer], stage, index)
            for peer, stage in sorted(plan.holders.items())
        )
        lead = self.me if self.me in plan.holders else members[0].peer
        return Record(
            index=index,
            epoch=epoch,
            forks=forks,
            began=began_with(newest, epoch, plan.step),
            step=plan.step,
            lead=lead,
            members=members,
            previous=self._newest.digest(),
        )

    def _ask(
        self,
        message: RestartPrepare | RestartAccept,
        peers: Sequence[PeerID] | Mapping[PeerID, object],
    ) -> list[Effect]:
        effects: list[Effect] = [Tell(peer, message) for peer in peers if peer != self.me]
        return effects + self._asked(self.me, message)

    def _give_up_try(self, now_s: float) -> None:
        self._try = None
        self._not_before_s = now_s + self._settings.silence_s * self._rng.uniform(0.5, 3.0)

    # --- time ---

    def _tick(self, now_s: float) -> list[Effect]:
        if now_s < self._next_beat_s:
            return []
        self._next_beat_s = now_s + self._settings.heartbeat_s
        if self.phase is Phase.JOINING:
            if now_s < self._join_until_s:
                return []
            self.phase = Phase.WAITING
            return [Join(False)]
        long_ago_s = now_s - _PRESENT_BEATS * self._settings.heartbeat_s
        self._backs = {peer: found for peer, found in self._backs.items() if found[0] >= long_ago_s}
        back = Back(self._incarnation, self._newest, self._claims, self._may_vote)
        effects: list[Effect] = [Tell(peer, back) for peer in self.members if peer != self.me]
        return effects + self._go_on(now_s)

    def _go_on(self, now_s: float) -> list[Effect]:
        trying = self._try
        if trying is not None:
            if now_s >= trying.until_s:
                self._give_up_try(now_s)
                return []
            return self._repeat(trying)
        if self.me not in self.members:
            self.waiting_because = "the others went on without this node: waits for them"
            return []
        plan = self._plan(now_s)
        if plan is None:
            return []
        present = [self.me, *self._backs]
        voting = [peer for peer, (_, back) in self._backs.items() if back.may_vote]
        if self._may_vote:
            voting.append(self.me)
        quorum = self.members.is_quorum(voting)
        if not quorum and not self._new_epoch:
            self.waiting_because = self._no_majority(len(present), len(present) - len(voting))
            return []
        everybody = len(present) == len(self.members)
        return self._stand(now_s, plan, everybody=everybody, quorum=quorum)

    def _no_majority(self, present: int, mute: int) -> str:
        unreadable = f", {mute} cannot read what they have voted" if mute else ""
        return (
            f"no majority is back: {len(self.members) - present} of {len(self.members)} members are"
            f" missing{unreadable}; `murmura run --new-epoch` goes on without them"
        )

    def _stand(self, now_s: float, plan: _Plan, *, everybody: bool, quorum: bool) -> list[Effect]:
        """Propose when it is our turn: the smaller our PeerID among those who can, the sooner.

        Without a quorum an operator has told us to go on: then there is nobody to ask.
        """
        ranked = sorted(plan.holders)
        rank = ranked.index(self.me) if self.me in plan.holders else len(ranked)
        due_s = self._not_before_s if everybody else max(self._settled_at_s, self._not_before_s)
        if everybody:
            due_s = max(due_s, self._settled_at_s - _SETTLE_SILENCES * self._settings.silence_s)
        due_s += rank * self._settings.silence_s
        self.waiting_because = f"agreeing with the others to go on from step {plan.step}"
        if now_s < due_s:
            return []
        if not quorum:
            return self._announce(now_s, self._first_record(plan, alone=True))
        ballot = Ballot(self._round_seen + 1, self.me)
        self._try = _Try(ballot, now_s + _TRY_SILENCES * self._settings.silence_s)
        return self._ask(RestartPrepare(self._newest.epoch + 1, ballot), list(self._backs))

    def _repeat(self, trying: _Try) -> list[Effect]:
        """Ask those again who have not answered."""
        epoch = self._newest.epoch + 1
        if trying.record is None:
            silent = [peer for peer in self._backs if peer not in trying.promises]
            return [Tell(peer, RestartPrepare(epoch, trying.ballot)) for peer in silent]
        accept = RestartAccept(epoch, trying.ballot, trying.record)
        silent = [peer for peer in trying.promises if peer not in {*trying.accepted, self.me}]
        return [Tell(peer, accept) for peer in silent]

    # --- which step ---

    def _counts(self, claim: Claim) -> bool:
        """Tell whether a checkpoint is of the history that the newest record ends."""
        if claim.step > self._settings.steps or claim.stage >= self._settings.stages:
            return False
        if claim.epoch > self._newest.epoch or is_overtaken(self._newest, claim.epoch, claim.step):
            return False
        return is_of_history(self._newest, claim.epoch, claim.step)

    def _plan(self, now_s: float) -> _Plan | None:
        """Return the newest step of which every stage is there; None, and say what is missing, when there is none."""
        claims = {peer: back.claims for peer, (_, back) in self._backs.items()}
        claims[self.me] = self._claims
        by_step: dict[tuple[int, int, bytes], dict[PeerID, Claim]] = {}
        for peer, held in claims.items():
            for claim in held:
                if self._counts(claim):
                    key = claim.epoch, claim.step, claim.lineage
                    by_step.setdefault(key, {}).setdefault(peer, claim)
        for key in sorted(by_step, reverse=True):
            holders = _of_most(by_step[key])
            if len(set(holders.values())) == self._settings.stages:
                return _Plan(key[1], holders)
        newest = max(by_step, default=None)
        if newest is None:
            self.waiting_because = "no checkpoint of this history is on the disks of who is back"
        else:
            there = {claim.stage for claim in by_step[newest].values()}
            absent = [stage for stage in range(self._settings.stages) if stage not in there]
            self.waiting_because = (
                f"no step is complete: of step {newest[1]} nobody who is back has stages {absent}"
            )
        return None


def _voters(record: Record) -> View:
    """Return who decides what follows on a record: its members, else those who left last, by this very record."""
    if record.members:
        return record.view
    return View(tuple(Member(peer, 0, 0, record.index) for peer in sorted(record.let_go)))


def _order(record: Record) -> tuple[int, int]:
    return record.epoch, record.index


def _of_most(claims: Mapping[PeerID, Claim]) -> dict[PeerID, int]:
    """Return peer -> stage of those whose file is the one that most have of its stage; of equally many the smaller hash."""
    votes: dict[int, Counter[bytes]] = {}
    for claim in claims.values():
        votes.setdefault(claim.stage, Counter())[claim.root] += 1
    right = {
        stage: min(roots, key=lambda root: (-roots[root], root)) for stage, roots in votes.items()
    }
    return {peer: c.stage for peer, c in claims.items() if c.root == right[c.stage]}
