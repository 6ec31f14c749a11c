"""One simulated peer: the real cores, and a shell of a few lines in place of sockets and threads."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, TypeAlias, assert_never

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.ids import PeerID
from protocols.ledger.events import (
    FAREWELLS_MAX,
    Admitted,
    ApplyStep,
    DiscardGradient,
    Effect,
    Event,
    Expelled,
    Heard,
    Learned,
    OfferState,
    Spread,
    StartReduce,
)
from protocols.ledger.member import Ledger
from protocols.ledger.messages import HeldState, Lease, Message, Records, Rumour
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
from tests.sim.engine.peer import SimPeer
from tests.sim.pipeline.stage import SimStage

if TYPE_CHECKING:
    from tests.sim.pipeline.lying_member import LyingMember
    from tests.sim.pipeline.world import PipelineWorld, TrainerCall

SavedState: TypeAlias = tuple[HeldState, bytes]
DRAIN_S = 25.0
"""A draining node exits then, whatever is left to hand over."""
_FAREWELL_S = 5.0
"""The longest that a node stays to tell the others by which record it left."""
_ALMOST = 0.95
"""Of a heartbeat: nobody wakes twice because two clocks differ a little."""


class PipelinePeer(SimPeer):
    """A node: ledger, trainer, stage.

    Args:
      founder: creates the run.
      observer: hosts nothing, only trains.
    """

    world: PipelineWorld

    def __init__(
        self,
        world: PipelineWorld,
        peer_id: PeerID,
        *,
        founder: bool = False,
        observer: bool = False,
    ) -> None:
        super().__init__(world, peer_id)
        self.observer = observer
        self._waking = False
        self._beats = 0
        self._look_at_s = math.inf
        """When the ledger is looked at next, by our own clock: with the next heartbeat, or before, as it wishes."""
        self.lies: LyingMember | None = None
        self._founder = founder
        wishes = random.Random(f"wishes/{world.seed}/{self.name}")
        stage = wishes.randrange(world.settings.stages)
        self.wanted_stage = stage if wishes.random() < world.faults.stage_wishes else None
        data = random.Random(f"data/{world.seed}/{self.name}")
        self._has_data = data.random() < world.trainers
        self.stage = SimStage(self)

    # --- life ---

    def start(self, saved: SavedState | None = None) -> None:
        """Boot a fresh process, that finds this state on its disk."""
        super().start(saved)
        self._beat(self.life)

    def boot(self, saved: SavedState | None) -> None:
        """Make the cores, and load what was on the disk."""
        self._waking = False
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
            held, state = saved
            self.world.went_back_to(self, held.step)
            self.stage.host(held.stage, state=state, step=held.step)
        self.calls: dict[int, TrainerCall] = {}
        self._join(saved[0] if saved is not None else None)
        self._founder = False

    def saved(self) -> SavedState | None:
        """Return the stage's state, if it is whole."""
        stage = self.stage
        if stage.loaded and stage.stage is not None:
            return HeldState(stage.stage, stage.step), stage.state
        return None

    @property
    def announces(self) -> bool:
        return self.ledger.member is not None

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
        self.perform(self.ledger.start())

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

    def lose(self, peer: PeerID) -> None:
        self.handle(PeerDown(self.now_s, peer))

    def leave_in_order(self) -> None:
        """Leave as the ledger says, at the latest after the deadline."""
        self.trainer.paused = True
        self.handle(DrainWanted(self.now_s))
        if self.ledger.member is None:
            self._say_farewell()
        else:
            self.later(self.world.scaled(DRAIN_S), self._drain_ends)

    def _drain_ends(self) -> None:
        self.world.log(f"{self.name} leaves at its deadline")
        self.gone()

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
        self.later(self.world.scaled(_FAREWELL_S) * self.rng.random(), self.gone)

    # --- ledger ---

    def handle(self, event: Event) -> None:
        """Let the ledger take an event, and do what it says."""
        self.drive(self.ledger, event)

    def drove(self, core: Ledger | Trainer) -> None:
        """Look at a core before the next heartbeat, if it wishes that."""
        if isinstance(core, Trainer):
            self._wake_for_retries()
        elif core.wake_at_s < self._look_at_s and core.member is not None:
            self._look_at_s = core.wake_at_s
            self.later(max(0.0, self._look_at_s - self.now_s) + 0.001, self._look)

    def do(self, effect: Effect | TrainerEffect) -> None:
        match effect:
            case Send():
                self.world.deliver(self, effect)
            case AskStage() | AskSettle() | AskClaim():
                self.world.call(self, effect)
            case CancelCall():
                self.calls.pop(effect.call).cancel()
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
            case Blame() | ReleaseTensors():
                pass
            case _:
                assert_never(effect)

    def _learned(self, effect: Learned) -> None:
        record = effect.record
        self.stage.record_learned(record)
        self.world.learned(self, record)
        lead = self.ledger.lead_peer or record.lead
        self.later(0.0, self._after_record, record, lead)

    def _after_record(self, record: Record, lead: PeerID) -> None:
        """The trainer hears of a record once the ledger has done everything it says."""
        if self.ledger.record is record:
            self.train(RecordLearned(self.now_s, record, lead))

    def _expelled(self, effect: Expelled) -> None:
        self.world.log(f"{self.name} is out: {effect.reason}")
        self.stage.forget_work()
        saved = self.saved()
        holds = saved[0] if saved is not None else None
        if self.draining and (effect.let_go or holds is None):
            if effect.let_go:
                self.world.gave_up(self)
            self._say_farewell()
            return
        self._join(holds)
        if self.draining:
            self.handle(DrainWanted(self.now_s))

    def take(self, source: PeerID, message: Message) -> None:
        if isinstance(message, Lease):
            self.train(LeaseReceived(self.now_s, source, message))
        self.handle(Received(self.now_s, source, message))

    def hear(self, author: PeerID, rumour: Rumour) -> None:
        """Take a rumour from the topic; what comes while we stand still is not kept for long."""
        if self.up and not self.stopped:
            self.handle(Heard(self.now_s, author, rumour))

    # --- training ---

    def train(self, event: TrainerEvent) -> None:
        """Let the trainer take an event, and do what it says."""
        self.drive(self.trainer, event)

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
