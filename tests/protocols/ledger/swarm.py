"""A few ledgers joined by a link that loses nothing unless told to: enough to read a decision off both ends."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import cast

from protocols.core import ContactsFound, Received, Send, Tick
from protocols.ids import PeerID
from protocols.ledger.events import (
    Effect,
    Event,
    Learned,
    LedgerSettings,
    ReduceFinished,
    StartReduce,
    StateLoaded,
    TallyChanged,
)
from protocols.ledger.member import Ledger
from protocols.ledger.messages import HeldState, Message, WorkWanted
from protocols.ledger.view import Member, Record

TRAINER = PeerID(b"trainer")
SETTINGS = LedgerSettings(stages=1, microbatches=4, steps=100, silence_s=2.0, reduce_s=8.0)


def peer_ids(count: int) -> list[PeerID]:
    """Return PeerIDs in ascending order."""
    return [PeerID(b"peer%02d" % number) for number in range(count)]


def members(stages: Iterable[int], *, since: int = 0) -> tuple[Member, ...]:
    """Return one member per entry, hosting that stage."""
    return tuple(
        Member(PeerID(b"peer%02d" % number), 1, stage, since) for number, stage in enumerate(stages)
    )


class Swarm:
    """Ledgers, the casts between them, and what they did."""

    def __init__(self, count: int, settings: LedgerSettings = SETTINGS) -> None:
        self.settings = settings
        self.now_s = 0.0
        self.ids = peer_ids(count)
        self.effects: dict[PeerID, list[Effect]] = {peer: [] for peer in self.ids}
        self.cut: set[PeerID] = set()
        self.drops: Callable[[PeerID, PeerID, Message], bool] = lambda source, target, message: (
            False
        )
        self.busy = False
        """Whether a trainer holds the last microbatch, so that hearts beat at full pace."""
        self.reduces = True
        """Whether reductions end by themselves, all with the same bytes."""
        self._casts: deque[tuple[PeerID, PeerID, Message]] = deque()
        self.ledgers = {
            peer: Ledger(peer, 1, settings, random.Random(number), founder=number == 0)
            for number, peer in enumerate(self.ids)
        }
        self._do(self.ids[0], self.ledgers[self.ids[0]].start())

    def everybody_joins(self) -> None:
        """Let all become members and have nothing to fetch."""
        self.contacts()
        self.pass_time(self.settings.silence_s)
        for peer in self.ids:
            assert self.ledgers[peer].member is not None
            self.handle(peer, StateLoaded(self.now_s))

    def contacts(self) -> None:
        for peer in self.ids:
            self.handle(peer, ContactsFound(self.now_s, tuple(p for p in self.ids if p != peer)))

    def restart(self, peer: PeerID, *, holds: HeldState | None = None) -> None:
        """Give a peer a new, empty ledger: what a restarted process has."""
        before = self.ledgers[peer]
        self.ledgers[peer] = Ledger(
            peer, before.incarnation + 1, self.settings, random.Random(99), holds=holds,
            now_s=self.now_s,
        )  # fmt: skip
        self.contacts()

    def handle(self, peer: PeerID, event: Event) -> None:
        """Let one ledger take an event, and all what follows from it."""
        self._do(peer, self.ledgers[peer].handle(event))
        self.settle()

    def cast(self, source: PeerID, target: PeerID, message: Message) -> None:
        """Put a message on the link by hand."""
        self._casts.append((source, target, message))
        self.settle()

    def settle(self) -> None:
        """Deliver until nobody has anything to say."""
        while self._casts:
            source, target, message = self._casts.popleft()
            if source != target and (source in self.cut or target in self.cut):
                continue
            if not self.drops(source, target, message) and target in self.ledgers:
                event = Received(self.now_s, source, message)
                self._do(target, self.ledgers[target].handle(event))

    def pass_time(self, seconds: float) -> None:
        """Tick everybody, twice a heartbeat."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += self.settings.heartbeat_s / 2
            for peer in self.ids:
                self.handle(peer, Tick(self.now_s))
                if self.busy and self.ledgers[peer].lead is not None and peer not in self.cut:
                    step = self.ledgers[peer].tally.step
                    self.cast(TRAINER, peer, WorkWanted(step, 0, b"\x08"))

    def _do(self, peer: PeerID, effects: list[Effect]) -> None:
        self.effects[peer] += effects
        for effect in effects:
            if isinstance(effect, Send):
                self._casts.append((peer, effect.peer, effect.message))
            elif isinstance(effect, StartReduce) and self.reduces:
                done = ReduceFinished(self.now_s, effect.index, effect.ballot, bytes(32), 1.0, 0.0)
                self._do(peer, self.ledgers[peer].handle(done))

    # --- what is asked of it ---

    def learned(self, peer: PeerID) -> list[Record]:
        """Return the records a peer learned, in order."""
        return [effect.record for effect in self.effects[peer] if isinstance(effect, Learned)]

    def sent(self, peer: PeerID, shape: type) -> list[Message]:
        """Return the messages of one kind that a peer sent."""
        messages = (effect.message for effect in self.effects[peer] if isinstance(effect, Send))
        return [cast("Message", message) for message in messages if isinstance(message, shape)]

    def did(self, peer: PeerID, shape: type) -> list[Effect]:
        return [effect for effect in self.effects[peer] if isinstance(effect, shape)]

    def count(self, peer: PeerID, ids: int) -> None:
        """Let a member have counted these microbatches."""
        self.ledgers[peer].tally.counted |= ids
        self.handle(peer, TallyChanged(self.now_s))
