"""Mistakes in the core of coming back that a hurried change could bring in, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from protocols.ids import PeerID
from protocols.ledger import restart
from protocols.ledger.restart import Begin, Phase, Restart, Tell, Vote, WriteVote
from protocols.ledger.restart_messages import Claim
from protocols.ledger.view import Record, View
from tests.sim.engine.subject import Planted
from tests.sim.restart.checkers import (
    EqualReplicas,
    GoesOn,
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


def _ignores_running(self: Restart, now_s: float, record: Record) -> Any:
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
    Planted("alone_is_enough", OldIsOver, ((Restart, "_go_on", _alone_is_enough),)),
    Planted("incomplete_plan", OfThisHistory, ((Restart, "_plan", _incomplete_plan),)),
    Planted("all_files", EqualReplicas, ((restart, "_of_most", _all_files),)),
    Planted("begin_in_any_life", ThisLife, ((Restart, "_begin", _begin_in_any_life),)),
    Planted("never_over", ThisLife, ((SimDisk, "in_run", _never_over),)),
    Planted("forgets_whom", SameWhileWaiting, ((SimDisk, "found", _forgets_whom),)),
    Planted("votes_anyway", OneVote, ((Restart, "_asked", _votes_anyway),)),
    Planted("ignores_running", GoesOn, ((Restart, "_running", _ignores_running),)),
    Planted("same_epoch", GoesOn, ((Restart, "_first_record", _same_epoch),)),
    Planted("all_are_named", GoesOn, ((Restart, "_first_record", _all_are_named),)),
)
