"""Standing for lead when the present one is silent. A wrong guess costs time, never safety: promises decide."""

from __future__ import annotations

import random
from typing import Final

from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.messages import Promise
from protocols.ledger.pulse import Pulse
from protocols.ledger.view import Ballot, Record, View

_RANKS: Final = 8
"""Beyond this many turns, randomness alone tells candidates apart."""


class Candidacy:
    """One member's attempts to take over record n + 1. A new one for each record."""

    __slots__ = (
        "_me",
        "_promises",
        "_pulse",
        "_rng",
        "_round_seen",
        "_settings",
        "ballot",
        "stand_at_s",
    )

    def __init__(
        self, me: PeerID, settings: LedgerSettings, pulse: Pulse, rng: random.Random
    ) -> None:
        self._me = me
        self._settings = settings
        self._pulse = pulse
        self._rng = rng
        self._round_seen = 0
        self._promises: dict[PeerID, Promise] = {}
        self.ballot: Ballot | None = None
        """What we stand with; None while we do not stand."""
        self.stand_at_s: float | None = None

    def saw(self, ballot: Ballot) -> None:
        """Note a round that somebody uses: ours must be higher."""
        self._round_seen = max(self._round_seen, ballot.round)

    def withdraw(self) -> None:
        """Somebody else stands, or leads, with a higher ballot."""
        self.ballot = None

    def calm(self) -> None:
        """The lead was heard."""
        self.stand_at_s = None

    def retry_later(self, now_s: float) -> None:
        """Stand again after a random while, so that two candidates do not outbid each other for ever."""
        self.ballot = None
        self.stand_at_s = now_s + self._settings.silence_s * (1 + self._rng.random())

    def is_due(self, now_s: float, lead: PeerID, view: View) -> bool:
        """Tell whether to stand now, because `lead` is suspected and our turn has come."""
        if lead != self._me and not self._pulse.suspects(now_s, lead):
            self.stand_at_s = None
            return False
        if self.stand_at_s is None:
            self.stand_at_s = now_s + self._turn_s(now_s, lead, view)
        return now_s >= self.stand_at_s

    def _turn_s(self, now_s: float, lead: PeerID, view: View) -> float:
        """Let the smallest live PeerID stand first; the others only if it does not."""
        alive = [
            member.peer
            for member in view.members
            if member.peer == self._me
            or (member.peer != lead and not self._pulse.suspects(now_s, member.peer))
        ]
        turns = min(alive.index(self._me), _RANKS) + 0.1 * self._rng.random()
        return self._settings.heartbeat_s * turns

    def stand(self, now_s: float, promised: Ballot) -> Ballot:
        """Take the next round and return its ballot."""
        self.saw(promised)
        self.retry_later(now_s)
        self._round_seen += 1
        self.ballot = Ballot(self._round_seen, self._me)
        self._promises = {}
        return self.ballot

    def promised(self, peer: PeerID, promise: Promise, view: View) -> dict[PeerID, Promise] | None:
        """Take a promise to our present ballot; return all of them, once, when they are a quorum."""
        self._promises[peer] = promise
        if not view.is_quorum(self._promises.keys()):
            return None
        promises, self._promises = self._promises, {}
        self.ballot = self.stand_at_s = None
        return promises

    def missing(self, view: View) -> int:
        """How many members have not promised."""
        return len(view) - len(self._promises)


def inherited(promises: dict[PeerID, Promise]) -> Record | None:
    """Return the record that a new lead must propose: the one accepted under the highest ballot, if any was."""
    best: Promise | None = None
    for promise in promises.values():
        if promise.accepted_at is None:
            continue
        if best is None or best.accepted_at is None or promise.accepted_at > best.accepted_at:
            best = promise
    return best.accepted if best is not None else None
