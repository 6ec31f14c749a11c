"""Members, quorums and records: the log that a run's members agree on, one record after the other.

Rules of this file:
  - Record n names the members that decide record n + 1. Any two quorums of one view share a member.
  - A member is a peer *in one incarnation*: a node that restarted without its memory is somebody else.
  - A set of microbatches is an int, bit i for microbatch i; on the wire it is little-endian bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgpack

from protocols.ids import PeerID
from protocols.ledger.epoch import history_of
from protocols.schema import Natural, Range, Size, encode

Digest = Annotated[bytes, Size(32, 32)]
MICROBATCHES_MAX: Final = 65_536
"""The most a step may have (protocols.run)."""
IdSet = Annotated[bytes, Size(0, MICROBATCHES_MAX // 8)]
LOSS_MAX: Final = 1e6
Loss = Annotated[float, Range(-LOSS_MAX, LOSS_MAX)]
"""Nats per token. No sum or mean of such numbers leaves the range of floats, whoever made them up."""
INDEX_MAX: Final = 2**30
Index = Annotated[int, Range(0, INDEX_MAX)]
"""Of a record, or a step: one a second for 34 years. Lease generations (protocols.ledger.leases) leave 31 bits for it."""

MEMBERS_MAX: Final = 16384
BEGAN_MAX: Final = 8
FORKS_MAX: Final = 8
FORK_ABSENT_MAX: Final = 16
"""Each record carries them, so there are few: one that is found is enough for two histories to meet."""
ROUND_MAX: Final = 2**40
"""Nobody honest gets there; a higher one would leave no room for the next."""


def pack_ids(ids: int) -> bytes:
    """Spell a set of microbatches for the wire."""
    return ids.to_bytes((ids.bit_length() + 7) // 8, "little")


def unpack_ids(raw: bytes) -> int:
    """Inverse of `pack_ids`."""
    return int.from_bytes(raw, "little")


def ids_of(mask: int) -> list[int]:
    """List the microbatches in a set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def mask_of(ids: Iterable[int]) -> int:
    """Inverse of `ids_of`."""
    mask = 0
    for index in ids:
        mask |= 1 << index
    return mask


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """One member's attempt to get a record decided. Higher ones win; the peer breaks ties, so no two are equal."""

    round: Natural
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Member:
    """A peer that hosts one stage and takes part in decisions."""

    peer: PeerID
    incarnation: Natural
    """Chosen at random when the node starts: it tells a restarted node from the one that died."""
    stage: Annotated[int, Range(0, 1023)]
    since: Index
    """Index of the record that admitted or fenced it. What it counted before that record is void."""


@dataclass(frozen=True, slots=True)
class MemberTally:
    """The microbatches of one step that one member's gradient contains."""

    peer: PeerID
    counted: IdSet


@dataclass(frozen=True, slots=True)
class StageCommit:
    """What all replicas of one stage hold after reducing."""

    gradient_hash: Digest
    """Of the reduced gradient's bytes."""
    squared_norm: Annotated[float, Range(0.0)]
    """Of the mean gradient, in float64; summed over stages it gives the norm that clipping uses."""
    state_hash: Annotated[bytes, Size(0, 32)] = b""
    """Of the stage's parameters and optimizer state *before* this step, when somebody is fetching them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """An epoch that an operator's word has begun without a majority. Others may have done the same elsewhere."""

    epoch: Natural
    after: Natural
    """The epoch that it goes on from: what members agreed on after that is of another history."""
    step: Index
    """Of its first record: what was done after that before, is not of this history."""
    absent: Annotated[tuple[PeerID, ...], Size(0, FORK_ABSENT_MAX)] = ()
    """Sorted. Members of the record before that are not members of its first one: looked for, and listened to, from then on."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """An epoch began at this step: what earlier ones had done after it was overtaken."""

    epoch: Natural
    step: Index


@dataclass(frozen=True, kw_only=True)
class Record:
    """One decision. A *view record* only changes the members; a *step record* also commits an optimizer step.

    What takes a walk through all members is found out once and kept with the record: it is asked for again and again, and
    every member of a simulated swarm asks the same object.
    """

    index: Index
    epoch: Natural = 0
    """Raised when the run went on from checkpoints (protocols.ledger.restart): its steps may come again."""
    forks: Annotated[tuple[Fork, ...], Size(0, FORKS_MAX)] = ()
    """The last words of operators that this history has come through, oldest first; most runs have none."""
    began: Annotated[tuple[Beginning, ...], Size(0, BEGAN_MAX)] = ()
    """How the last epochs began, oldest first, each at a later step than the one before: an epoch that began no later than
    earlier ones replaces them."""
    step: Index
    """The last committed optimizer step, this record's own included."""
    lead: PeerID
    """Who proposed it; it leads the next record unless it falls silent."""
    members: Annotated[tuple[Member, ...], Size(0, MEMBERS_MAX)]
    """Sorted by PeerID. They decide the next record."""
    let_go: Annotated[tuple[PeerID, ...], Size(0, MEMBERS_MAX)] = ()
    """Who left because it wanted to, and may: others hold what it held. Whoever else is missing was given up for dead."""
    reduced_at: Ballot | None = None
    """The ballot under which the gradients were reduced; None in a view record."""
    tallies: Annotated[tuple[MemberTally, ...], Size(0, MEMBERS_MAX)] = ()
    stages: Annotated[tuple[StageCommit, ...], Size(0, 1024)] = ()
    loss: Loss | None = None
    """Mean training loss over the step's microbatches, nats per token."""
    held_out_loss: Loss | None = None
    """Of the parameters of step - 1, when they were evaluated."""
    previous: Annotated[bytes, Size(0, 32)] = b""
    """Digest of the record before: two histories that differ once differ for ever."""

    @property
    def commits_step(self) -> bool:
        return self.reduced_at is not None

    def digest(self) -> bytes:
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(msgpack.packb(encode(self))).digest()

    @cached_property
    def view(self) -> View:
        """The members, with the lookups that decisions need."""
        return View(self.members)

    @cached_property
    def counted(self) -> dict[PeerID, int]:
        """The microbatches that each member's gradient contributed."""
        return {entry.peer: unpack_ids(entry.counted) for entry in self.tallies}

    @cached_property
    def verdicts(self) -> dict[bytes, str | None]:
        """Digest of a record that comes before, or b"" for any -> why this one cannot follow it; None when it can."""
        return {}


class View:
    """The members after one record, with the lookups that decisions need."""

    __slots__ = ("_by_peer", "_by_stage", "_fewest", "_newest", "members")

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = tuple(members)
        self._by_peer = {member.peer: member for member in self.members}
        self._by_stage: dict[int, list[Member]] = {}
        for member in self.members:
            self._by_stage.setdefault(member.stage, []).append(member)
        self._fewest = min((len(replicas) for replicas in self._by_stage.values()), default=0)
        self._newest = {
            stage: max(member.since for member in members)
            for stage, members in self._by_stage.items()
        }

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, peer: PeerID) -> bool:
        return peer in self._by_peer

    def __iter__(self) -> Iterator[PeerID]:
        return iter(self._by_peer)

    def find(self, peer: PeerID) -> Member | None:
        return self._by_peer.get(peer)

    def replicas(self, stage: int) -> list[Member]:
        """Members of one stage, sorted by PeerID."""
        return self._by_stage.get(stage, [])

    def newcomers(self, stage: int, index: int) -> list[PeerID]:
        """Members of one stage that record `index` admitted or fenced."""
        if self._newest.get(stage, -1) < index:
            return []
        return [member.peer for member in self.replicas(stage) if member.since == index]

    def staffed(self, stages: int, replicas: int = 1) -> bool:
        """Tell whether every stage has at least `replicas` members."""
        return len(self._by_stage) >= stages and self._fewest >= replicas

    def is_quorum(self, peers: Collection[PeerID]) -> bool:
        """Tell whether `peers` may decide: more than half of the members, or half with the smallest PeerID among them.

        Two such sets always share a member: two majorities overlap, and of two halves only one has the smallest.
        """
        present = len(self._by_peer.keys() & peers)
        if present * 2 != len(self.members):
            return present * 2 > len(self.members)
        return present > 0 and min(self._by_peer) in peers


def coverage_problem(record: Record, view: View, *, microbatches: int, stages: int) -> str | None:
    """Say why a step record does not count each microbatch exactly once at every stage; None when it does."""
    full = (1 << microbatches) - 1
    covered = [0] * stages
    seen: set[PeerID] = set()
    for tally in record.tallies:
        member = view.find(tally.peer)
        if member is None or tally.peer in seen:
            return f"peer {tally.peer} is no member, or is listed twice"
        seen.add(tally.peer)
        counted = unpack_ids(tally.counted)
        if counted & covered[member.stage]:
            return f"stage {member.stage} counts microbatches {ids_of(counted & covered[member.stage])} twice"
        covered[member.stage] |= counted
    for stage, ids in enumerate(covered):
        if ids != full:
            return (
                f"stage {stage} misses microbatches {ids_of(full & ~ids)[:8]} or has foreign ones"
            )
    return None


def membership_problem(record: Record, view: View, *, stages: int) -> str | None:
    """Say why the members of `record` cannot follow those of `view`; None when they can.

    Whoever is new, fenced, moved or restarted must be marked so by `since`: what it counted before is void.
    """
    problem = shape_problem(record, stages=stages)
    if problem is not None:
        return problem
    for member in record.members:
        if member.since != record.index and view.find(member.peer) != member:
            return f"peer {member.peer} was changed without being marked"
    return None


def shape_problem(record: Record, *, stages: int) -> str | None:
    """Say why `record` cannot be one of this run's, whatever came before it; None when it can."""
    previous: PeerID | None = None
    for member in record.members:
        if previous is not None and member.peer <= previous:
            return "the members are not sorted, or one is listed twice"
        previous = member.peer
        if member.stage >= stages:
            return f"there is no stage {member.stage}"
        if member.since > record.index:
            return f"peer {member.peer} is a member since a record to come"
    if any(peer in record.view for peer in record.let_go):
        return "a member is let go and stays"
    if record.members and record.lead not in record.view:
        return "the lead is no member"
    if record.commits_step and len(record.stages) != stages:
        return "a step is committed by all stages"
    return _forks_problem(record)


def is_of_history(newest: Record, epoch: int, step: int) -> bool:
    """Tell whether what was done in an epoch, up to a step, is of the history that `newest` ends, as far as operators go."""
    oldest = 0
    for fork in reversed(newest.forks):
        if epoch >= fork.epoch:
            return history_of(epoch) == history_of(fork.epoch)
        if epoch > fork.after or step > fork.step:
            return False
        oldest = fork.after
    return history_of(epoch) == history_of(oldest)


def began_with(before: Record, epoch: int, step: int) -> tuple[Beginning, ...]:
    """Return how the epochs began up to one that begins at this step after `before`."""
    kept = (earlier for earlier in before.began if earlier.step < step)
    return (*kept, Beginning(epoch, step))[-BEGAN_MAX:]


def is_overtaken(newest: Record, epoch: int, step: int) -> bool:
    """Tell whether a step of an epoch was left behind by a later one that began before it.

    So is all that is older than the beginnings that the record names: one that it does not name may have done it.
    """
    if len(newest.began) == BEGAN_MAX and epoch < newest.began[0].epoch:
        return True
    return any(step > later.step for later in newest.began if later.epoch > epoch)


def _forks_problem(record: Record) -> str | None:
    epochs = [fork.epoch for fork in record.forks]
    if epochs != sorted(set(epochs)):
        return "its operators' epochs are not in order"
    if any(fork.after >= fork.epoch for fork in record.forks):
        return "an operator's epoch goes on from a later one"
    newest = epochs[-1] if epochs else 0
    if history_of(record.epoch) != history_of(newest) or record.epoch < newest:
        return "its epoch is of another history than it says"
    return None
