"""One simulated node: the core of coming back, a disk, and its place in the model of the run."""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

from protocols.ids import PeerID
from protocols.ledger.epoch import history_of, shown
from protocols.ledger.restart import (
    Begin,
    Disk,
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
from protocols.ledger.reunion import Ask, Call, GiveWay, Reunion
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
        self.reunion: Reunion | None = None
        """While it is in the run."""
        self.wants_history: int | None = None
        """Into which history it wants, when it has given up its own."""
        self.new_epoch = False
        """An operator's word, for its next start."""
        self.has_word = False
        self.may_vote = True
        """Whether this life could read what those before have voted."""
        self._votes: deque[Vote] = deque()
        self._disk_rng = random.Random(f"disk/{world.seed}/{self.name}")

    # --- life ---

    def boot(self, saved: Any) -> None:
        self.incarnation = self.world.next_incarnation()
        self.running = self.core = self.wants_history = None
        self.wants_in = False
        self.has_word, self.new_epoch = self.new_epoch, False
        self._votes.clear()
        if saved is None:
            if self.life > 1:
                self.disk = SimDisk()
            self.wants_in = True
            return
        self._come_back(saved)

    def _come_back(self, found: Disk, *, gives_way: bool = False) -> None:
        self.may_vote = found.may_vote
        if found.incarnation is not None:
            self.incarnation = found.incarnation
        elif found.may_vote:
            self.disk.incarnation = self.incarnation
        self.core = Restart(
            self.peer_id,
            self.incarnation,
            self.world.settings,
            found,
            random.Random(self.rng.random()),
            now_s=self.now_s,
            new_epoch=self.has_word and not gives_way,
            gives_way=gives_way,
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

    @property
    def waits(self) -> bool:
        """Whether it is back from its disk, and in no run."""
        return self.core is not None and self.core.phase is Phase.WAITING

    # --- the run ---

    def learn(self, record: Record) -> None:
        """The run's members have decided this: it is in the journal before anything follows from it."""
        self._is_in(record)
        if self.core is not None and self.core.phase is not Phase.DONE:
            self.drive(self.core, InRun(self.now_s))

    def _is_in(self, record: Record) -> None:
        settings = self.world.settings
        if self.running is None:
            self.reunion = Reunion(
                self.peer_id, settings.silence_s, settings.stages, now_s=self.now_s
            )
        self.running = record
        self.wants_history = None
        self.disk.join(record)

    def look_for_others(self) -> None:
        """Members look for those that their run has begun without, and for another run when theirs does not go on."""
        if self.running is not None and self.reunion is not None:
            majority = self.world.goes_on_at(self)
            self.perform(self.reunion.tick(self.now_s, self.running, majority=majority))

    def _give_way(self, record: Record) -> None:
        """The process begins anew, from its disk, and wants into the other history."""
        self.world.log(f"{self.name} gives way: step {record.step} of epoch {shown(record.epoch)}")
        self.running = self.core = None
        self._votes.clear()
        self.incarnation = self.world.next_incarnation()
        self.wants_in, self.wants_history = True, history_of(record.epoch)
        found = self.disk.found()
        if found is not None:
            self._come_back(found, gives_way=True)
        else:
            self.later(self.world.scaled(_GIVE_UP_S), self._into_any)

    def _into_any(self) -> None:
        self.wants_history = None

    def checkpoint(self, record: Record, stage: int) -> None:
        """Write a checkpoint of the step that this record committed; it takes a moment."""
        rng, world = self._disk_rng, self.world
        damage = self.name if rng.random() < world.faults.damage else ""
        self.later(world.scaled(rng.random()), self.disk.keep, record, stage, damage)

    # --- messages ---

    def take(self, source: PeerID, message: RestartMessage) -> None:
        if self.running is not None:
            if isinstance(message, Back):
                if self.world.goes_on_at(self):
                    self.world.cast(self, source, Running(self.running))
            elif isinstance(message, Running) and self.reunion is not None:
                told = self.reunion.told(
                    self.now_s, self.running, source, message.record,
                    majority=self.world.goes_on_at(self),
                )  # fmt: skip
                self.perform(told)
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
                self.world.noted(record)
            case Begin(record, _):
                self._is_in(record)
                self.world.begun(self, record)
            case Join(wanted):
                self.wants_in, self.wants_history = wanted, None
            case Call(peer):
                assert self.running is not None
                self.world.cast(self, peer, Running(self.running))
            case Ask(peer):
                assert self.running is not None
                back = Back(self.incarnation, self.running, (), may_vote=False)
                self.world.cast(self, peer, back)
            case GiveWay(record):
                self._give_way(record)
            case _:
                super().do(effect)

    def _begin_write(self) -> None:
        slow_s = self.world.scaled(self.world.faults.slow_disk) if not self.world.healed_s else 0.0
        self.later(slow_s * self._disk_rng.random() + 0.001, self._write_vote, self.core)

    def _write_vote(self, core: Restart) -> None:
        if core is not self.core:
            return  # the process has begun anew
        vote = self._votes.popleft()
        full = self.world.healed_s is None and self._disk_rng.random() < self.world.faults.full_disk
        if not full:
            self.disk.vote, self.disk.damaged = vote, False
        if self._votes:
            self._begin_write()
        self.drive(core, VoteWritten(self.now_s, not full))
