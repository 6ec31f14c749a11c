"""The shell of `protocols.ledger.outlived`: how a member of a run that cannot go on learns that, and tells the others."""

from __future__ import annotations

import logging
from typing import Final, Protocol

import trio

from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.member import Ledger
from protocols.ledger.outlived import LOST_SILENCES, LostStages, Outlived
from protocols.ledger.restart_messages import (
    Back,
    GoBack,
    RestartCast,
    Running,
    encode_restart,
)
from protocols.ledger.view import Record
from swarm.calls import Caller
from swarm.pipeline.reuniting import RESTART_SERVICE

log = logging.getLogger(__name__)

_TOLD_S: Final = 1.0
"""What was cast is on its way by then."""


class Member(Protocol):
    """What is used of the peer."""

    ledger: Ledger
    draining: bool
    settings: LedgerSettings


class GoingBack:
    """Sets `due` when this node is to give up its life in the run, and to go on from its disk."""

    def __init__(self, member: Member, caller: Caller) -> None:
        self.due = trio.Event()
        self._member = member
        self._caller = caller
        self._outlived = Outlived()
        self._lost = LostStages(patience_s=LOST_SILENCES * member.settings.silence_s)

    async def run(self) -> None:
        """Look, as long as we lead, whether all have to go back. Returns when this node has to."""
        while not self.due.is_set():
            await trio.sleep(self._member.settings.silence_s)
            ledger = self._member.ledger
            lost = ledger.lead.lost_stages() if ledger.lead is not None else []
            record = ledger.record
            if record is None or self._member.draining:
                continue
            if self._lost.are_due(trio.current_time(), record, lost):
                log.warning("nobody has the state of stages %s: all go back to their disks", lost)
                await self._lead_back(record)

    async def _lead_back(self, record: Record) -> None:
        told = encode_restart(GoBack(record.index))
        for member in record.members:
            if member != self._member.ledger.member:
                self._caller.cast_nowait(member.peer, RESTART_SERVICE, told)
        await trio.sleep(_TOLD_S)
        self.due.set()

    def heard(self, peer: PeerID, message: RestartCast, record: Record) -> None:
        """Take a cast of the `restart` service, as a member by this record."""
        match message:
            case Back():
                self._meet_back(peer, message, record)
            case GoBack(index) if peer == self._member.ledger.lead_peer:
                if index >= record.index and not self._member.draining:
                    log.warning("the lead tells all to go back to their disks: lead=%s", peer.short)
                    self.due.set()
            case _:
                pass  # of those who are back, among themselves

    def _meet_back(self, peer: PeerID, back: Back, record: Record) -> None:
        """Say that the run goes on, unless it cannot: now, or ever without those that are back."""
        self._lost.back(peer, {claim.stage for claim in back.claims})
        if self._outlived.back(record, peer, back.incarnation):
            if not self._member.draining:
                self.due.set()
        elif not self._member.ledger.lacks_majority:
            self._caller.cast_nowait(peer, RESTART_SERVICE, encode_restart(Running(record)))
