"""Mistakes in the core of coming back that a hurried change could bring in, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from protocols.ids import PeerID
from protocols.ledger import restart, reunion
from protocols.ledger.restart import Begin, Phase, Restart, Tell, Vote, WriteVote
from protocols.ledger.restart_messages import Claim
from protocols.ledger.reunion import Reunion
from protocols.ledger.view import Record, View
from tests.sim.engine.subject import Planted
from tests.sim.restart import disk
from tests.sim.restart.checkers import (
    ByWordOnly,
    EqualReplicas,
    GoesOn,
    LongerStays,
    OfThisHistory,
    OldIsOver,
    OneHistory,
    OneVote,
    SameWhileWaiting,
    ThisLife,
    VoteBeforeWord,
)
from tests.sim.restart.disk import SimDisk

# --- replacements; each is the original with one thing wrong ---


def _say_at_once(self: Restart, vote: Vote, reply: Tell) -> Any:
    """The word goes out while the vote is on its way to the disk."""
    self._vote = vote
    self._replies.append(reply)
    said = [] if reply.peer == self.me else [reply]
    return [WriteVote(vote), *said]


def _written_whatever(self: Restart, written: Any) -> Any:
    """A vote that could not be written counts as well."""
    return _written(self, dataclasses.replace(written, ok=True))


def _anybody_decides(record: Record) -> View:
    """Two that are back are taken for all."""
    return View(_voters(record).members[:1])


def _few_decide(record: Record) -> View:
    """A third of the members is taken for a majority."""
    members = _voters(record).members
    return View(members[: max(1, len(members) // 3)])


def _all_files(claims: Mapping[PeerID, Claim]) -> dict[PeerID, int]:
    """Replicas need not have the same file."""
    return {peer: claim.stage for peer, claim in claims.items()}


def _incomplete_plan(self: Restart, now_s: float) -> Any:
    """Some stages are enough."""
    stages, settings = self._settings.stages, self._settings
    self._settings = dataclasses.replace(settings, stages=max(1, stages - 1))
    try:
        return _plan(self, now_s)
    finally:
        self._settings = settings


def _same_epoch(self: Restart, plan: Any) -> Record:
    """The run goes on in the epoch that it was in."""
    return dataclasses.replace(_first_record(self, plan), epoch=self._newest.epoch)


def _all_are_named(self: Restart, plan: Any) -> Record:
    """Members are named as they were, not as they are now."""
    record = _first_record(self, plan)
    members = tuple(dataclasses.replace(m, incarnation=m.incarnation - 1) for m in record.members)
    return dataclasses.replace(record, members=members)


def _begin_in_any_life(self: Restart, record: Record) -> Any:
    """Who is named begins, though it has died since."""
    member = record.view.find(self.me)
    if member is None:
        return []
    for claim in self._claims:
        if (claim.stage, claim.step) == (member.stage, record.step) and self._counts(claim):
            self.phase = Phase.DONE
            return [Begin(record, claim)]
    return []


def _ignores_running(self: Restart, now_s: float, peer: PeerID, record: Record) -> Any:
    """That the run goes on is not believed."""
    return []


def _alone_is_enough(self: Restart, now_s: float) -> Any:
    """A majority is not waited for."""
    before, self._new_epoch = self._new_epoch, True
    try:
        return _go_on(self, now_s)
    finally:
        self._new_epoch = before


def _votes_anyway(self: Restart, peer: PeerID, asked: Any) -> Any:
    """A vote that cannot be read is taken for none."""
    self._may_vote = True
    return _asked(self, peer, asked)


def _forgets_whom(self: SimDisk) -> Any:
    """Each life is somebody else, although nothing has begun."""
    found = _found(self)
    return found and dataclasses.replace(found, incarnation=None)


def _never_over(self: SimDisk) -> None:
    """Who has begun comes back as the same member."""


def _no_nonce(epoch: int, rng: Any) -> int:
    """An operator's epoch is the next one, like any other."""
    return epoch + 1


def _all_counts(newest: Record, epoch: int, step: int) -> bool:
    """Checkpoints of another history count as well."""
    return True


def _never_overtaken(newest: Record, epoch: int, step: int) -> bool:
    """A checkpoint counts whatever epoch has begun before it since."""
    return False


def _believes_anybody(ours: Record, theirs: Record, *, speaker: PeerID) -> bool:
    """Whoever says that its history is longer is believed."""
    absent = tuple(fork.absent for fork in ours.forks)
    return any(_gives_way(ours, theirs, speaker=peer) for peers in absent for peer in peers) or (
        bool(ours.forks) and ours.forks != theirs.forks and theirs.step > ours.step
    )


def _shorter_stays(ours: Record, theirs: Record, *, speaker: PeerID) -> bool:
    """The comparison is the wrong way round."""
    known = {peer for fork in ours.forks for peer in fork.absent}
    return speaker in known and ours.forks != theirs.forks and ours.step >= theirs.step


def _always_longest(ours: Record, theirs: Record, *, speaker: PeerID) -> bool:
    """What members have agreed on gives way, too, to what an operator's word has begun."""
    return ours.forks != theirs.forks and theirs.step > ours.step


def _nobody_looks(self: Reunion, now_s: float, ours: Record, *, majority: bool) -> Any:
    """Who was not there is forgotten."""
    return []


_gives_way = reunion.gives_way
_asked = Restart._asked
_found = SimDisk.found
_written = Restart._written
_voters = restart._voters
_plan = Restart._plan
_go_on = Restart._go_on
_first_record = Restart._first_record

SUITE: Final = (
    Planted("say_at_once", VoteBeforeWord, ((Restart, "_write", _say_at_once),)),
    Planted("written_whatever", VoteBeforeWord, ((Restart, "_written", _written_whatever),)),
    Planted("anybody_decides", OneHistory, ((restart, "_voters", _anybody_decides),)),
    Planted("alone_is_enough", ByWordOnly, ((Restart, "_go_on", _alone_is_enough),)),
    Planted("few_decide", OldIsOver, ((restart, "_voters", _few_decide),)),
    Planted("incomplete_plan", OfThisHistory, ((Restart, "_plan", _incomplete_plan),)),
    Planted("all_files", EqualReplicas, ((restart, "_of_most", _all_files),)),
    Planted("begin_in_any_life", ThisLife, ((Restart, "_begin", _begin_in_any_life),)),
    Planted("never_over", ThisLife, ((SimDisk, "in_run", _never_over),)),
    Planted("forgets_whom", SameWhileWaiting, ((SimDisk, "found", _forgets_whom),)),
    Planted("votes_anyway", OneVote, ((Restart, "_asked", _votes_anyway),)),
    Planted("no_nonce", OneHistory, ((restart, "begun_alone", _no_nonce),)),
    Planted(
        "all_counts",
        OfThisHistory,
        (
            (restart, "is_of_history", _all_counts),
            (restart, "is_overtaken", _never_overtaken),
            (disk, "is_of_history", _all_counts),
        ),
    ),
    Planted("believes_anybody", LongerStays, ((reunion, "gives_way", _believes_anybody),)),
    Planted("shorter_stays", LongerStays, ((reunion, "gives_way", _shorter_stays),)),
    Planted("always_longest", LongerStays, ((reunion, "gives_way", _always_longest),)),
    Planted("nobody_looks", GoesOn, ((Reunion, "tick", _nobody_looks),)),
    Planted("ignores_running", GoesOn, ((Restart, "_running", _ignores_running),)),
    Planted("same_epoch", GoesOn, ((Restart, "_first_record", _same_epoch),)),
    Planted("all_are_named", GoesOn, ((Restart, "_first_record", _all_are_named),)),
)
