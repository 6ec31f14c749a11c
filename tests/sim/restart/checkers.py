"""What coming back from the disk promises, each watched by one checker."""

from __future__ import annotations

from typing import Any

from protocols.ledger.epoch import history_of
from protocols.ledger.restart import Begin, NoteEpoch, Tell, WriteVote
from protocols.ledger.restart_messages import Back, Decided, RestartAccepted, RestartPromise
from protocols.ledger.reunion import GiveWay
from protocols.ledger.view import Member, Record
from tests.sim.engine.checker import Checker, Progress, on
from tests.sim.restart import notes
from tests.sim.restart.disk import holders
from tests.sim.restart.peer import RestartPeer
from tests.sim.restart.world import RestartWorld


class RestartChecker(Checker):
    world: RestartWorld


class OneHistory(RestartChecker):
    promise = "one history"

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self._first: dict[int, bytes] = {}
        self._decided: set[bytes] = set()

    @on(notes.Decided)
    def decided(self, peer: RestartPeer, note: notes.Decided) -> None:
        self._decided.add(note.record.digest())

    @on(Begin)
    def begins(self, peer: RestartPeer, begin: Begin) -> None:
        self._look(peer, begin)

    @on(NoteEpoch)
    def notes(self, peer: RestartPeer, note: NoteEpoch) -> None:
        self._look(peer, note)

    def _look(self, peer: RestartPeer, what: Begin | NoteEpoch) -> None:
        epoch, digest = what.record.epoch, what.record.digest()
        if digest in self._decided:
            return  # by the epoch's own members, later
        if self._first.setdefault(epoch, digest) != digest:
            raise self.broken(f"{peer.name} learns of a second record that begins epoch {epoch}")


class OldIsOver(RestartChecker):
    """Within a history: an operator who begins another one cannot know whether others live."""

    promise = "the old is over"

    @on(notes.Decided)
    def decided(self, peer: RestartPeer, note: notes.Decided) -> None:
        epoch = note.record.epoch
        history = history_of(epoch)
        newest = max(found for found in self.world.heads if history_of(found) == history)
        if epoch < newest:
            raise self.broken(
                f"record {note.record.index} of epoch {note.record.epoch} decided in epoch {newest}"
            )


class VoteBeforeWord(RestartChecker):
    promise = "vote before word"

    @on(Tell)
    def tells(self, peer: RestartPeer, tell: Tell) -> None:
        message, vote = tell.message, peer.disk.vote
        if not isinstance(message, RestartPromise | RestartAccepted):
            return
        if vote is None or vote.epoch < message.epoch:
            raise self.broken(f"{peer.name} votes for epoch {message.epoch}, not yet on its disk")
        if vote.epoch > message.epoch:
            return
        if vote.promised < message.ballot:
            raise self.broken(f"{peer.name} says a ballot that is not on its disk")
        if isinstance(message, RestartAccepted) and (
            vote.accepted_at is None or vote.accepted_at < message.ballot
        ):
            raise self.broken(f"{peer.name} accepts what is not on its disk")


class OneVote(RestartChecker):
    promise = "one vote"

    @on(WriteVote)
    def votes(self, peer: RestartPeer, write: WriteVote) -> None:
        if not peer.may_vote:
            raise self.broken(f"{peer.name} votes and cannot know what it has voted before")


class OfThisHistory(RestartChecker):
    promise = "of this history"

    @on(Begin)
    def begins(self, peer: RestartPeer, begin: Begin) -> None:
        world, claim = self.world, begin.claim
        if claim not in peer.disk.claims:
            raise self.broken(f"{peer.name} begins with a checkpoint that it has not got")
        if begin.record.epoch in world.heads:
            return  # the run may have stepped on meanwhile
        known = {record.digest(): record for record in world.before(begin.record)}
        record = known.get(claim.lineage)
        if record is None or record.step != begin.record.step:
            raise self.broken(f"{peer.name} goes on from step {claim.step} of another history")
        if any(self._is_elsewhere(member, begin.record) for member in begin.record.members):
            return  # one has gone since, perhaps with its disk
        disks = {m.peer: world.peers[m.peer].disk for m in begin.record.members}
        if len(holders(disks, record)) != world.stages:
            raise self.broken(f"step {record.step} is not complete among the members")

    def _is_elsewhere(self, member: Member, record: Record) -> bool:
        """Tell whether a member has died since, or has joined another history."""
        peer = self.world.peers[member.peer]
        elsewhere = peer.running is not None and peer.running.epoch != record.epoch
        return elsewhere or peer.incarnation != member.incarnation


class EqualReplicas(RestartChecker):
    promise = "equal replicas"

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self._roots: dict[tuple[int, int, bytes], bytes] = {}

    @on(Begin)
    def begins(self, peer: RestartPeer, begin: Begin) -> None:
        key = begin.record.epoch, begin.claim.stage, begin.record.digest()
        if self._roots.setdefault(key, begin.claim.root) != begin.claim.root:
            raise self.broken(f"{peer.name} begins stage {key[1]} with another file")


class ThisLife(RestartChecker):
    promise = "this life"

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self._begun: set[Member] = set()

    @on(Begin)
    def begins(self, peer: RestartPeer, begin: Begin) -> None:
        member = begin.record.view.find(peer.peer_id)
        if member is None or member.incarnation != peer.incarnation:
            raise self.broken(f"{peer.name} begins as one that it is not, or was before")
        if member in self._begun:
            raise self.broken(f"{peer.name} begins twice as the same member")
        self._begun.add(member)


class SameWhileWaiting(RestartChecker):
    """So a record that was decided while it was away is still about it."""

    promise = "same while waiting"

    def __init__(self, world: Any) -> None:
        super().__init__(world)
        self._waits_as: dict[str, tuple[int, tuple[int, int]]] = {}
        """Node -> whom it said it would be, and in which life of its disk."""

    @on(Tell)
    def tells(self, peer: RestartPeer, tell: Tell) -> None:
        if not isinstance(tell.message, Back) or peer.disk.damaged:
            return
        said, life = tell.message.incarnation, (peer.state_life, peer.disk.lives)
        if self._waits_as.setdefault(peer.name, (said, life)) == (said, life):
            return
        if self._waits_as[peer.name][1] == life:
            raise self.broken(f"{peer.name} waits as {said}, and waited as another one before")
        self._waits_as[peer.name] = said, life


class ByWordOnly(RestartChecker):
    promise = "by word only"

    @on(Tell)
    def tells(self, peer: RestartPeer, tell: Tell) -> None:
        if not isinstance(tell.message, Decided) or peer.has_word:
            return
        record = tell.message.record
        if record.forks and record.forks[-1].epoch == record.epoch:
            raise self.broken(f"{peer.name} begins an epoch alone, and nobody told it to")


class LongerStays(RestartChecker):
    """And who has had a majority all the time stays, however long the other is."""

    promise = "the longer one stays"

    @on(GiveWay)
    def gives_way(self, peer: RestartPeer, effect: GiveWay) -> None:
        ours, theirs = peer.running, effect.record
        assert ours is not None
        if not self.world.goes_on_at(peer):
            return  # nothing can be decided there any more: it believes those it was with, as one that is back from its disk
        if theirs.digest() not in self.world.decided:
            raise self.broken(f"{peer.name} gives way to a history that there is not")
        common = {fork.epoch for fork in ours.forks} & {fork.epoch for fork in theirs.forks}
        own, other = len(ours.forks) - len(common), len(theirs.forks) - len(common)
        if not own:
            raise self.broken(f"{peer.name} gives way, and its history was agreed on")
        if other and (theirs.step, theirs.forks[-other].epoch) <= (
            ours.step,
            ours.forks[-own].epoch,
        ):
            raise self.broken(f"{peer.name} gives way at {ours.step} to {theirs.step}")


class GoesOn(Progress):
    promise = "goes on"


ALL = (
    OneHistory,
    OldIsOver,
    VoteBeforeWord,
    OneVote,
    OfThisHistory,
    EqualReplicas,
    ThisLife,
    SameWhileWaiting,
    ByWordOnly,
    LongerStays,
    GoesOn,
)
