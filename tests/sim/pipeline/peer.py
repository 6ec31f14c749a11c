"""One simulated peer: the real cores, and a shell of a few lines in place of sockets and threads."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, assert_never

from protocols.ids import PeerID
from protocols.ledger.events import (
    FAREWELLS_MAX,
    Admitted,
    ApplyStep,
    Blame,
    ContactsFound,
    DiscardGradient,
    DrainWanted,
    Effect,
    Event,
    Expelled,
    Heard,
    Learned,
    OfferState,
    PeerDown,
    Received,
    Send,
    Spread,
    StartReduce,
    Tick,
)
from protocols.ledger.member import Ledger
from protocols.ledger.messages import HeldState, Lease, Records, Rumour
from protocols.ledger.trainer import (
    AskClaim,
    AskSettle,
    AskStage,
    CancelCall,
    LeaseReceived,
    NodeLeaves,
    RecordLearned,
    ReleaseTensors,
    Trainer,
    TrainerEffect,
    TrainerEvent,
    TrainerTick,
)
from protocols.ledger.view import Record
from tests.sim.pipeline.stage import SimStage

if TYPE_CHECKING:
    from tests.sim.pipeline.lying_member import LyingMember
    from tests.sim.pipeline.world import Call, World

SavedState: TypeAlias = tuple[HeldState, bytes]
DRAIN_S = 25.0
"""A draining node exits then, whatever is left to hand over."""
_FAREWELL_S = 5.0
"""The longest that a node stays to tell the others by which record it left."""
_LATE_S = 1.0
_STOPPED_POLL_S = 0.1
_ALMOST = 0.95
"""Of a heartbeat: nobody wakes twice because two clocks differ a little."""


class SimPeer:
    """A node: ledger, trainer, stage.

    Args:
      founder: creates the run.
      observer: hosts nothing, only trains.
    """

    def __init__(
        self, world: World, peer_id: PeerID, *, founder: bool = False, observer: bool = False
    ) -> None:
        self.world = world
        self.peer_id = peer_id
        self.name = peer_id.decode()
        self.rng = random.Random(f"{world.seed}/{self.name}")
        self.observer = observer
        self.up = False
        self.stopped = False
        self.left = False
        self.draining = False
        self._waking = False
        self._beats = 0
        self._look_at_s = math.inf
        """When the ledger is looked at next, by our own clock: with the next heartbeat, or before, as it wishes."""
        self.life = 0
        """Raised by each crash: what was planned before then does not happen, what was known is lost."""
        self.state_life = 0
        """Raised when the hosted state is lost, too."""
        self.lies: LyingMember | None = None
        self._founder = founder
        wishes = random.Random(f"wishes/{world.seed}/{self.name}")
        stage = wishes.randrange(world.settings.stages)
        self.wanted_stage = stage if wishes.random() < world.faults.stage_wishes else None
        data = random.Random(f"data/{world.seed}/{self.name}")
        self._has_data = data.random() < world.trainers
        self._lateness = random.Random(f"lateness/{world.seed}/{self.name}")
        skewed = world.faults.clock_skew
        self._clock_zero_s = self.rng.uniform(-1e4, 1e4) if skewed else 0.0
        self._clock_rate = self.rng.uniform(0.98, 1.02) if skewed else 1.0
        self.stage = SimStage(self, 0.5 + self.rng.random())

    @property
    def now_s(self) -> float:
        """What this peer's own clock says: its zero and its pace are its own."""
        return self._clock_zero_s + self.world.clock.now_s * self._clock_rate

    # --- life ---

    def start(self, saved: SavedState | None = None) -> None:
        """Boot a fresh process, that finds this state on its disk."""
        self.life += 1
        self.up = True
        self.stopped = self.draining = self._waking = False
        self.stage.reset()
        if self._founder:
            self.stage.host(self.wanted_stage or 0)
        self.trainer = Trainer(
            self.world.settings,
            random.Random(self.rng.getrandbits(32)),
            in_flight=self.world.in_flight,
            floor_s=self.world.deadlines_s[0],
            ceiling_s=self.world.deadlines_s[1],
        )
        self.trainer.paused = not self._has_data
        if saved is not None:
            self.stage.host(saved[0].stage, state=saved[1], step=saved[0].step)
        self.calls: dict[int, Call] = {}
        self._join(saved[0] if saved is not None else None)
        self._founder = False
        self._announce(self.life)
        self._beat(self.life)

    def _join(self, holds: HeldState | None) -> None:
        """Begin as an outsider: at the start, and again whenever we are expelled."""
        self.record_index = -1
        self.ledger = Ledger(
            self.peer_id,
            self.rng.getrandbits(32),
            self.world.settings,
            random.Random(self.rng.getrandbits(32)),
            founder=self._founder,
            observer=self.observer,
            stage=self.wanted_stage,
            holds=holds,
            now_s=self.now_s,
        )
        self._perform_all(self.ledger.start())

    def later(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        """Do something later unless we have died by then; a stopped process does it when it goes on."""
        self.world.clock.after(delay_s, self._act, self.life, action, args)

    def _act(self, life: int, action: Callable[..., None], args: tuple[object, ...]) -> None:
        if not self.up or life != self.life:
            return
        if self.stopped:
            self.world.clock.after(_STOPPED_POLL_S, self._act, life, action, args)
        else:
            action(*args)

    def _beat(self, life: int) -> None:
        """Let time pass in the cores, once a heartbeat."""
        if not self.up or life != self.life:
            return
        settings = self.world.settings
        self._expect_beat()
        if not self.stopped:
            now_s = self.now_s
            self._beats += 1
            if self.ledger.member is None or self._beats % 8 == 0:
                self.handle(ContactsFound(now_s, self.world.directory.members()))
            self.handle(Tick(now_s))
            lead = self.ledger.lead_peer
            if lead is not None:
                self.trainer.rewire(lead)
            self.train(TrainerTick(now_s))
        self.world.clock.after(settings.heartbeat_s, self._beat, life)

    def _expect_beat(self) -> None:
        self._look_at_s = self.now_s + _ALMOST * self.world.settings.heartbeat_s

    def _look(self) -> None:
        self._expect_beat()
        self.handle(Tick(self.now_s))

    def _announce(self, life: int) -> None:
        """Tell the directory that we are a member, again and again."""
        if not self.up or life != self.life:
            return
        directory = self.world.directory
        if not self.stopped and self.ledger.member is not None:
            directory.announce(self.peer_id)
        self.world.clock.after(directory.announce_s, self._announce, life)

    def crash(self) -> None:
        """Die without a word. Those who talk to us find that the connection is gone."""
        self.up = False
        self.life += 1
        self.world.network.down.add(self.peer_id)
        self.world.exchanges.changed()
        self.world.watch.died(self)
        for other in self.world.connected_to(self):
            other.later(0.05, other.notice_down, self.peer_id)

    def restart(self, *, keeps_state: bool) -> None:
        """Come back with the same identity, without memory; with the stage's state if that was on disk."""
        stage = self.stage
        saved: SavedState | None = None
        if keeps_state and stage.loaded and stage.stage is not None:
            saved = (HeldState(stage.stage, stage.step), stage.state)
            self.world.went_back_to(self, stage.step)
        else:
            self.state_life += 1
        self.world.network.down.discard(self.peer_id)
        self.start(saved)

    def stop(self) -> None:
        """Stand still, as a suspended process does."""
        self.stopped = True
        self.world.exchanges.changed()

    def go_on(self) -> None:
        """End of a stop."""
        self.stopped = False
        self.world.exchanges.changed()

    def notice_down(self, peer: PeerID) -> None:
        """The transport could not reach a peer, and a second try fails as well."""
        if not self.world.network.reaches(self.peer_id, peer):
            self.handle(PeerDown(self.now_s, peer))

    def drain(self) -> None:
        """Leave in good order, at the latest after the deadline."""
        if self.stopped:
            self.later(0.0, self.drain)
            return
        self.draining = True
        self.trainer.paused = True
        self.handle(DrainWanted(self.now_s))
        if self.ledger.member is None:
            self._say_farewell()
        else:
            self.later(self.world.scaled(DRAIN_S), self._drain_ends)

    def _drain_ends(self) -> None:
        self.world.log(f"{self.name} leaves at its deadline")
        self._leave()

    def _say_farewell(self) -> None:
        """Stay a moment, no member any more, until the others know by which record we left."""
        self.train(NodeLeaves(self.now_s))
        record = self.ledger.record
        if record is not None:
            members = record.members
            if len(members) > FAREWELLS_MAX:
                members = tuple(self.rng.sample(members, FAREWELLS_MAX))
            for member in members:
                self.world.deliver(self, Send(member.peer, Records((record,), record.index)))
        self.later(self.world.scaled(_FAREWELL_S) * self.rng.random(), self._leave)

    def _leave(self) -> None:
        self.left = True
        self.state_life += 1
        self.crash()

    # --- ledger ---

    def handle(self, event: Event) -> None:
        """Let the ledger take an event, and do what it says."""
        self.world.handled += 1
        ledger = self.ledger
        self._perform_all(ledger.handle(event))
        if ledger.wake_at_s < self._look_at_s and ledger.member is not None:
            self._look_at_s = ledger.wake_at_s
            self.later(max(0.0, self._look_at_s - self.now_s) + 0.001, self._look)

    def report(self, tell: Callable[..., None], *args: object) -> None:
        """Pass on what came of something; a busy shell does so a little later, when it may be news of the past."""
        rate = self.world.faults.late_reports
        if rate and self._lateness.random() < rate:
            self.later(self.world.scaled(_LATE_S) * self._lateness.random(), tell, *args)
        elif self.stopped:
            self.later(0.0, tell, *args)
        else:
            tell(*args)

    def _perform_all(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self.up:
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                self.world.deliver(self, effect)
            case StartReduce():
                self.stage.start_reduce(effect)
            case ApplyStep():
                self.stage.apply(effect.record)
            case DiscardGradient():
                self.stage.discard()
            case Admitted():
                self.stage.admitted(effect)
            case OfferState():
                self.stage.offer(effect.step)
            case Expelled():
                self._expelled(effect)
            case Learned():
                self._learned(effect)
            case Spread():
                self.world.topic.publish(self.peer_id, effect.rumour)
            case Blame():
                self.world.watch.blamed(self, effect.peer, effect.reason)
            case _:
                assert_never(effect)

    def _learned(self, effect: Learned) -> None:
        record = effect.record
        self.stage.record_learned()
        self.world.learned(self, record)
        lead = self.ledger.lead_peer or record.lead
        self.later(0.0, self._after_record, record, lead)

    def _after_record(self, record: Record, lead: PeerID) -> None:
        """The trainer hears of a record once the ledger has done everything it says."""
        self.world.watch.settled(self, record)
        if self.ledger.record is record:
            self.train(RecordLearned(self.now_s, record, lead))

    def _expelled(self, effect: Expelled) -> None:
        self.world.log(f"{self.name} is out: {effect.reason}")
        self.world.watch.expelled(self)
        stage = self.stage
        stage.forget_work()
        holds = None
        if stage.loaded and stage.stage is not None:
            holds = HeldState(stage.stage, stage.step)
        if self.draining and (effect.let_go or holds is None):
            if effect.let_go:
                self.world.gave_up(self)
            self._say_farewell()
            return
        self._join(holds)
        if self.draining:
            self.handle(DrainWanted(self.now_s))

    def receive(self, source: PeerID, send: Send) -> None:
        """Take a message from the network."""
        if not self.up:
            return
        if self.stopped:
            self.later(_STOPPED_POLL_S, self.receive, source, send)
            return
        self.world.received(self, source, send)
        if isinstance(send.message, Lease):
            self.train(LeaseReceived(self.now_s, source, send.message))
        self.handle(Received(self.now_s, source, send.message))

    def hear(self, author: PeerID, rumour: Rumour) -> None:
        """Take a rumour from the topic; what comes while we stand still is not kept for long."""
        if self.up and not self.stopped:
            self.handle(Heard(self.now_s, author, rumour))

    # --- training ---

    def train(self, event: TrainerEvent) -> None:
        """Let the trainer take an event, and do what it says."""
        self.world.handled += 1
        for effect in self.trainer.handle(event):
            self._train(effect)
        self._wake_for_retries()

    def _train(self, effect: TrainerEffect) -> None:
        match effect:
            case AskStage() | AskSettle() | AskClaim():
                self.world.call(self, effect)
            case Send():
                self.world.deliver(self, effect)
            case CancelCall():
                self.calls.pop(effect.call).cancel()
            case ReleaseTensors():
                pass
            case _:
                assert_never(effect)

    def _wake_for_retries(self) -> None:
        """The trainer pauses before it asks again; look at it then, not at the next heartbeat only."""
        if self._waking:
            return
        wait_s = self.trainer.wake_at_s - self.now_s
        if 0 < wait_s < self.world.settings.heartbeat_s:
            self._waking = True
            self.later(wait_s + 0.001, self._retry)

    def _retry(self) -> None:
        self._waking = False
        self.train(TrainerTick(self.now_s))
