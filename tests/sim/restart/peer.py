"""One simulated node: the core of coming back, a disk, and its place in the model of the run."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

from protocols.ids import PeerID
from protocols.ledger.restart import (
    Begin,
    Heard,
    InRun,
    Join,
    NoteEpoch,
    Phase,
    Restart,
    Tell,
    Vote,
    VoteWritten,
    WriteVote,
)
from protocols.ledger.restart_messages import Back, RestartMessage, Running
from protocols.ledger.view import Record
from tests.sim.engine.peer import SimPeer
from tests.sim.restart.disk import SimDisk

if TYPE_CHECKING:
    from tests.sim.restart.world import RestartWorld

_GIVE_UP_S = 20.0


class RestartPeer(SimPeer):
    """In the run, on its way back into it, or a newcomer."""

    world: RestartWorld

    def __init__(self, world: RestartWorld, peer_id: PeerID) -> None:
        super().__init__(world, peer_id)
        self.disk = SimDisk()
        self.core: Restart | None = None
        self.running: Record | None = None
        """The newest record that it knows of the run that it is in."""
        self.wants_in = False
        """A newcomer, or one whom the run goes on without."""
        self.incarnation = 0
        self.new_epoch = False
        self._votes: deque[Vote] = deque()
        self._disk_rng = random.Random(f"disk/{world.seed}/{self.name}")

    # --- life ---

    def boot(self, saved: Any) -> None:
        self.incarnation = self.world.next_incarnation()
        self.running = self.core = None
        self.wants_in = False
        self._votes.clear()
        if saved is None:
            if self.life > 1:
                self.disk = SimDisk()
            self.wants_in = True
            return
        self.core = Restart(
            self.peer_id,
            self.incarnation,
            self.world.settings,
            saved,
            random.Random(self.rng.random()),
            now_s=self.now_s,
            new_epoch=self.new_epoch,
        )
        self.drove(self.core)

    def saved(self) -> Any:
        return self.disk.found()

    def leave_in_order(self) -> None:
        self.later(self.world.scaled(_GIVE_UP_S), self.let_go)

    def let_go(self) -> None:
        """The run lets it go, or it has waited long enough."""
        if not self.up or not self.draining:
            return
        if self.comes_back:
            self.draining = self.comes_back = False
            self.crash()
        else:
            self.gone()

    # --- the run ---

    def learn(self, record: Record) -> None:
        """The run's members have decided this: it is in the journal before anything follows from it."""
        self.running = record
        self.disk.note(record)
        if self.core is not None and self.core.phase is not Phase.DONE:
            self.drive(self.core, InRun(self.now_s))

    def checkpoint(self, record: Record, stage: int) -> None:
        """Write a checkpoint of the step that this record committed; it takes a moment."""
        rng, world = self._disk_rng, self.world
        damage = self.name if rng.random() < world.faults.damage else ""
        self.later(world.scaled(rng.random()), self.disk.keep, record, stage, damage)

    # --- messages ---

    def take(self, source: PeerID, message: RestartMessage) -> None:
        if self.running is not None:
            if isinstance(message, Back):
                self.world.cast(self, source, Running(self.running))
        elif self.core is not None:
            self.drive(self.core, Heard(self.now_s, source, message))

    def do(self, effect: Any) -> None:
        match effect:
            case Tell(peer, message):
                self.world.cast(self, peer, message)
            case WriteVote(vote):
                self._votes.append(vote)
                if len(self._votes) == 1:
                    self._begin_write()
            case NoteEpoch(record):
                self.disk.note(record)
            case Begin(record, _):
                self.disk.note(record)
                self.running = record
                self.world.begun(self, record)
            case Join(wanted):
                self.wants_in = wanted
            case _:
                super().do(effect)

    def _begin_write(self) -> None:
        slow_s = self.world.scaled(self.world.faults.slow_disk) if not self.world.healed_s else 0.0
        self.later(slow_s * self._disk_rng.random() + 0.001, self._write_vote)

    def _write_vote(self) -> None:
        vote = self._votes.popleft()
        full = self.world.healed_s is None and self._disk_rng.random() < self.world.faults.full_disk
        if not full:
            self.disk.vote = vote
        if self._votes:
            self._begin_write()
        assert self.core is not None
        self.drive(self.core, VoteWritten(self.now_s, not full))
