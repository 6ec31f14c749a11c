"""Members that lie about work: what they counted and reduced, to the lead, to candidates, to trainers, to each other.

In what is decided they take part honestly, as protocols/ledger/README.md requires of every member: promises, accepts,
records and their own ballots are those of the real core. What goes out besides is changed on its way. Nothing that a
liar says to itself is changed, so a lying lead leads well.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from protocols.core import Send
from protocols.ids import PeerID
from protocols.ledger.events import TallyChanged
from protocols.ledger.messages import (
    Evaluated,
    Heartbeat,
    Lease,
    Message,
    Promise,
    Records,
    RecordsWanted,
    Reduced,
    ReduceStuck,
    TallyReport,
    WorkWanted,
)
from protocols.ledger.tally import Settled
from protocols.ledger.trainer import CallAnswered, ClaimAnswered, SettleAnswered, TrainerEvent
from protocols.ledger.view import Ballot, Record, pack_ids, unpack_ids
from tests.sim.pipeline.stage import MakeEvent

if TYPE_CHECKING:
    from tests.sim.pipeline.peer import PipelinePeer
    from tests.sim.pipeline.world import PipelineWorld

_HUGE: Final = 2**62
_ZERO: Final = bytes(32)
_FLOOD: Final = 20
_HABITS: Final = (
    "claims all", "claims some", "copies", "shrinks", "wrong step", "out of range", "broken",
    "answers", "old answers", "reduces", "stuck", "hollow", "heartbeats", "later", "leases", "floods",
)  # fmt: skip


class LyingMember:
    """One liar. Its habits are drawn: most have a few, and do each always, often or rarely."""

    def __init__(self, world: PipelineWorld, peer: PipelinePeer) -> None:
        self._world = world
        self._peer = peer
        self._rng = rng = random.Random(f"lying member/{world.seed}/{peer.name}")
        self._habits = [habit for habit in _HABITS if rng.random() < 0.3] or [rng.choice(_HABITS)]
        self._rate = rng.choice((0.05, 0.3, 1.0))

    def start(self) -> None:
        """Lie until the world heals."""
        self._world.log(f"{self._peer.name} lies: {', '.join(self._habits)}")
        self._world.liars.add(self._peer.peer_id)
        self._peer.lies = self
        self._volunteer()

    def _does(self, *habits: str) -> str | None:
        """Choose a lie that it would tell now."""
        mine = [habit for habit in habits if habit in self._habits]
        return self._rng.choice(mine) if mine and self._rng.random() < self._rate else None

    def _some(self, ids: int) -> int:
        return ids & self._rng.getrandbits(self._world.settings.microbatches)

    @property
    def _full(self) -> int:
        return (1 << self._world.settings.microbatches) - 1

    # --- in place of the truth ---

    def told(self, send: Send) -> Send:
        """Change what it tells another peer."""
        message = send.message
        if isinstance(message, TallyReport):
            return Send(send.peer, self._report(message))
        if isinstance(message, Promise):
            return Send(
                send.peer, dataclasses.replace(message, report=self._report(message.report))
            )
        if isinstance(message, Reduced):
            return Send(send.peer, self._reduced(message))
        return send

    def _report(self, report: TallyReport) -> TallyReport:
        counted = unpack_ids(report.counted)
        match self._does("claims all", "claims some", "copies", "shrinks", "wrong step", "out of range", "broken"):  # fmt: skip
            case "claims all":
                counted = self._full
            case "claims some":
                counted |= self._some(self._full)
            case "copies":
                counted |= self._counted_by_replicas()
            case "shrinks":
                counted = self._some(counted)
            case "wrong step":
                step = report.step + self._rng.choice((1, 2, _HUGE))
                return dataclasses.replace(report, step=step, counted=pack_ids(self._full))
            case "out of range":
                counted |= (self._full + 1) << self._rng.randrange(100)
            case "broken":
                return dataclasses.replace(report, broken=True)
        return dataclasses.replace(report, counted=pack_ids(counted))

    def _counted_by_replicas(self) -> int:
        ledger, found = self._peer.ledger, 0
        for replica in self._replicas():
            other = self._world.peers[replica].ledger
            if other.tally.step == ledger.tally.step:
                found |= other.tally.counted
        return found

    def _replicas(self) -> list[PeerID]:
        """The others that host its stage."""
        ledger = self._peer.ledger
        if ledger.member is None:
            return []
        return [m.peer for m in ledger.view.replicas(ledger.member.stage) if m.peer != ledger.me]

    def _reduced(self, message: Reduced) -> Message:
        """Nobody can contradict the last replica of a stage, so that one does not lie here."""
        lie = self._does("reduces", "stuck") if self._replicas() else None
        if lie == "stuck":
            return ReduceStuck(message.index, message.ballot, self._rng.choice(self._replicas()))
        if lie == "reduces":
            lies = (
                {"gradient_hash": self._rng.randbytes(32)},
                {"squared_norm": self._rng.choice((0.0, 1e300))},
                {"loss_sum": self._rng.choice((-1e11, 1e11))},
            )
            return dataclasses.replace(message, **self._rng.choice(lies))
        return message

    def answer(self, trainer: PeerID, make: MakeEvent) -> MakeEvent:
        """Change what it answers: those with an even name hear other things than the rest."""
        lie = self._does("answers", "old answers")
        if lie is None or trainer == self._peer.peer_id:
            return make
        friend = trainer[-1] % 2 == 0
        return lambda now_s: self._answer(make(now_s), friend=friend, old=lie == "old answers")

    def _answer(self, event: TrainerEvent, *, friend: bool, old: bool) -> TrainerEvent:
        if isinstance(event, CallAnswered | SettleAnswered | ClaimAnswered) and old:
            return dataclasses.replace(event, index=self._rng.choice((0, _HUGE)))
        match event:
            case CallAnswered():
                return dataclasses.replace(event, counted=friend, loss=-1e6)
            case SettleAnswered():
                others = (Settled.VOID, Settled.PENDING)
                settled = Settled.COUNTED if friend else self._rng.choice(others)
                return dataclasses.replace(event, settled=settled)
            case ClaimAnswered():
                pending = 0 if friend else self._some(self._full)
                return dataclasses.replace(event, counted=-friend & (_HUGE - 1), pending=pending)
        return event

    # --- unasked ---

    def _volunteer(self) -> None:
        world, peer = self._world, self._peer
        if peer.lies is not self:
            return
        world.clock.after(world.scaled(self._rng.random()), self._volunteer)
        record = peer.ledger.record
        if not peer.up or peer.stopped or record is None or peer.ledger.member is None:
            return
        if peer.ledger.lead_peer == peer.peer_id:
            return  # what a lead says unasked it says as the lead
        if self._does("hollow") and not peer.ledger.tally.frozen:
            peer.ledger.tally.counted |= self._some(self._full)
            peer.handle(TallyChanged(peer.now_s))
        habit = self._does("heartbeats", "later", "leases", "floods", "answers", "stuck")
        others = [
            member.peer
            for member in record.members
            if member.peer != peer.peer_id and not self._is_followed_by(member.peer)
        ]
        if habit is not None and others:
            self._tell(habit, record, self._rng.choice(others), others)

    def _is_followed_by(self, peer: PeerID) -> bool:
        """Tell whether a peer takes it for the lead: a lead that lies is not simulated."""
        return self._world.peers[peer].ledger.lead_peer == self._peer.peer_id

    def _tell(self, habit: str, record: Record, victim: PeerID, others: list[PeerID]) -> None:
        later = record.index + self._rng.choice((0, 0, 1, 50, 2**29))
        step, rng = record.step + 1, self._rng
        forged = Ballot(rng.choice((1, 7, 2**40)), rng.choice(others))
        lies: dict[str, list[Callable[[], Message]]] = {
            "heartbeats": [
                lambda: Heartbeat(later, record.digest(), Ballot(0, record.lead), pace=16),
                lambda: Heartbeat(later, _ZERO, Ballot(0, record.lead), stay=True),
                lambda: Heartbeat(record.index, record.digest(), forged),
            ],
            "later": [lambda: Records((), record.index + 1 + rng.choice((0, 50, 2**29)), cut=True)],
            "leases": [
                lambda: Lease(record.index, step, _HUGE, pack_ids(self._full), fresh=True),
                lambda: Lease(record.index, step, _HUGE, b"", fresh=True, lost=pack_ids(self._full)),
            ],
            "floods": [lambda: RecordsWanted(0)],
            "answers": [
                lambda: Evaluated(step, rng.choice((0, 1, _HUGE)), -1e6),
                lambda: WorkWanted(step, 4096, pack_ids(self._some(self._full))),
                lambda: TallyReport(record.index, step + 1, pack_ids(self._full)),
            ],
            "stuck": [
                lambda: ReduceStuck(record.index + 1, Ballot(0, record.lead), rng.choice(others)),
            ],
        }  # fmt: skip
        message = rng.choice(lies[habit])()
        for _ in range(_FLOOD if habit == "floods" else 1):
            self._world.forge(self._peer.peer_id, victim, message)
