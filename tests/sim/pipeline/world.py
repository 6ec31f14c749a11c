"""A run of the pipeline: records, who holds which state, trainers' calls, and what the faults may take for good."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from protocols.core import Send
from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.messages import Lease
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage, CallFailed
from protocols.ledger.view import Record
from tests.sim.engine.call import Call
from tests.sim.engine.checker import Checker
from tests.sim.engine.world import World
from tests.sim.pipeline.checkers import ALL
from tests.sim.pipeline.checkers.one_side_commits import is_quorum
from tests.sim.pipeline.contest import Contest
from tests.sim.pipeline.exchange import Exchanges
from tests.sim.pipeline.faults import PipelineFaults, PipelineInjector
from tests.sim.pipeline.notes import CallEnded, Decided, GaveUp, StateReached
from tests.sim.pipeline.peer import PipelinePeer
from tests.sim.pipeline.stage import MakeEvent, signature_for

_ALL_CONNECTED: Final = 64
_NAMES_IN_TRACE: Final = 64
_STEPS_AFTER: Final = 3
"""A run that is healed commits so many more steps in time, or its last one."""


class PipelineWorld(World[PipelinePeer]):
    """A world whose peers host the stages of one pipeline.

    Args:
      reduce_s: what exchanging a gradient takes, of the standard run.
      compute_s: what a forward takes, of the standard run.
      announce_s: how often a member announces itself; None: once in two of the times after which a silent peer is suspected.
      trainers: share of the peers that have data to train on; the others only host.
      in_flight: microbatches that one of them works on at once.
      deadlines_s: floor and ceiling of a trainer's requests; None: one and ten of these times.
    """

    unit = "steps"
    faults: PipelineFaults

    def __init__(
        self,
        seed: int,
        settings: LedgerSettings,
        peer_count: int,
        faults: PipelineFaults,
        *,
        scale: float = 1.0,
        delay_s: float = 0.01,
        reduce_s: float = 0.0,
        compute_s: float = 0.05,
        announce_s: float | None = None,
        trainers: float = 1.0,
        in_flight: int = 4,
        deadlines_s: tuple[float, float] | None = None,
        detailed: bool = False,
        checkers: Sequence[type[Checker]] = ALL,
    ) -> None:
        super().__init__(
            seed,
            faults,
            scale=scale,
            delay_s=delay_s,
            announce_s=announce_s or settings.silence_s * 2,
            detailed=detailed,
            checkers=checkers,
        )
        self.settings = settings
        self.compute_s = compute_s * scale
        self.fetch_s = 0.5
        self.trainers, self.in_flight = trainers, in_flight
        self.deadlines_s = deadlines_s or (settings.silence_s, 10 * settings.silence_s)
        self.reduce_s = reduce_s
        self.broken_gradients, self.damaged_bytes = faults.broken_gradients, faults.damaged_bytes
        self.records: dict[int, Record] = {}
        self.newest_record: Record | None = None
        self.false_parts: dict[tuple[int, int], Counter[int]] = {}
        """Record and stage -> what lying members put into the reduced gradient."""
        self.forgers: set[PeerID] = set()
        """Honest but for what they are made to send, which nobody believes."""
        self._interrupt: Callable[[PipelinePeer], None] | None = None
        self.contest: Contest | None = None
        self.holders: dict[tuple[int, int], set[tuple[PeerID, int]]] = {}
        """Who, in which life of its state, must hold a stage's state of a step."""
        self.exchanges = Exchanges(self)
        self._observers_from = peer_count - min(faults.observers, peer_count - settings.stages)
        self.populate(peer_count)

    # --- what the engine asks ---

    def make_peer(self, peer_id: PeerID, index: int | None) -> PipelinePeer:
        observer = index is not None and index >= self._observers_from
        return PipelinePeer(self, peer_id, founder=index == 0, observer=observer)

    @property
    def progress(self) -> int:
        return self.step

    def expected(self) -> int:
        return min(self.settings.steps, self.step + _STEPS_AFTER)

    def changed(self, peer: PipelinePeer) -> None:
        self.exchanges.changed()

    def plan_faults(self, until_s: float) -> None:
        PipelineInjector(self, until_s).plan()

    def mend(self) -> None:
        self.broken_gradients = self.damaged_bytes = 0.0
        self.contest = None
        for peer in self.peers.values():
            peer.lies = None

    def described(self) -> str:
        return f"settings: {self.settings}"

    def connected_to(self, peer: PipelinePeer) -> list[PipelinePeer]:
        """Who notices at once when this peer dies: in a small swarm everybody, in a large one those that talk to it."""
        others = super().connected_to(peer)
        if len(others) <= _ALL_CONNECTED:
            return others
        follow = peer.ledger.lead is not None
        lead, peer_id = peer.ledger.lead_peer, peer.peer_id
        return [
            other
            for other in others
            if other.peer_id == lead
            or (follow and other.ledger.lead_peer == peer_id)
            or (other.calls and any(call.ask.peer == peer_id for call in other.calls.values()))
        ]

    # --- what peers use ---

    def deliver(self, source: PipelinePeer, send: Send) -> None:
        """Cast a message of the ledger or the trainer."""
        if source.lies is not None and send.peer != source.peer_id:
            send = source.lies.told(send)
        if isinstance(send.message, Lease):
            signature = signature_for(source.peer_id, send.peer)
            send = Send(send.peer, dataclasses.replace(send.message, signature=signature))
        self.watch.see(source, send.message)
        contest = self.contest
        if contest is None or not contest.loses(source.peer_id, send.peer, send.message):
            self.forge(source.peer_id, send.peer, send.message)

    def call(self, trainer: PipelinePeer, ask: AskStage | AskSettle | AskClaim) -> None:
        """Carry a question that is answered once: by the member, or by its deadline with nobody knowing."""
        if self.detailed:
            self.log(f"{trainer.name} ? {ask}")
        call = trainer.calls[ask.call] = TrainerCall(self, trainer, ask)
        call.begin(ask.deadline_s if isinstance(ask, AskStage) else self.deadlines_s[0])

    def learned(self, peer: PipelinePeer, record: Record) -> None:
        """A peer takes a record: the first one to do so shows it to the checkers."""
        peer.record_index = record.index
        if record.index not in self.records:
            before = self.records.get(record.index - 1)
            self.records[record.index] = record
            if self.newest_record is None or record.index > self.newest_record.index:
                self.newest_record = record
            self._note_holders(record, before)
            self.log(
                f"record {record.index} step {record.step} lead {record.lead.decode()} {_names(record)}"
            )
            self.watch.see(peer, Decided(record, before))
            interrupt, self._interrupt = self._interrupt, None
            if interrupt is not None and self.healed_s is None:
                interrupt(peer)
            self.advanced()

    def at_next_decision(self, interrupt: Callable[[PipelinePeer], None]) -> None:
        """Do something to the one that decides the next record, in that moment."""
        self._interrupt = interrupt

    def damages(self, peer: PipelinePeer) -> bool:
        """Tell whether what this peer reduces now ends with other bytes than it should."""
        return self.rng.random() < self.damaged_bytes

    # --- what may be lost ---

    @property
    def step(self) -> int:
        """The newest committed step."""
        return self.newest_record.step if self.newest_record is not None else self.first_step

    @property
    def first_step(self) -> int:
        """The step that the run begins from: every node can build the state of every stage there."""
        return self.settings.first_step

    def _note_holders(self, record: Record, before: Record | None) -> None:
        """Whoever had reduced a committed step must come to hold it; who loads it later is added by `state_reached`."""
        if not record.commits_step or before is None:
            return
        for member in before.members:
            peer = self.peers[member.peer]
            if peer.ledger.incarnation != member.incarnation:
                continue  # it has lost what it had reduced
            if (member.stage, record.step - 1) in self.holders and (
                member.peer,
                peer.state_life,
            ) not in self.holders[member.stage, record.step - 1]:
                continue  # it was still fetching
            self.add_holder(peer, member.stage, record.step)
        for key in [key for key in self.holders if key[1] < record.step - 1]:
            del self.holders[key]

    def add_holder(self, peer: PipelinePeer, stage: int, step: int) -> None:
        self.holders.setdefault((stage, step), set()).add((peer.peer_id, peer.state_life))

    def state_reached(self, peer: PipelinePeer, stage: int, step: int, state: bytes) -> None:
        """A peer has computed or loaded a state."""
        self.add_holder(peer, stage, step)
        self.watch.see(peer, StateReached(stage, step, state))

    def went_back_to(self, peer: PipelinePeer, step: int) -> None:
        """A peer restarted with what was on its disk: what it had reduced since then is gone."""
        for (_, reached), holders in self.holders.items():
            if reached > step:
                holders.discard((peer.peer_id, peer.state_life))

    def gave_up(self, peer: PipelinePeer) -> None:
        """A peer drops the state it has, as a record says."""
        self.watch.see(peer, GaveUp())
        for (stage, _), holders in self.holders.items():
            if stage == peer.stage.stage:
                holders.discard((peer.peer_id, peer.state_life))

    def lost(self) -> str | None:
        """Say why nobody could continue this run: a majority is dead, or all that held a stage's state. None if neither."""
        known = [
            p.ledger.record for p in self.peers.values() if p.up and p.ledger.record is not None
        ]
        newest_alive = max((record.index for record in known), default=0)
        for index, record in self.records.items():
            if index >= newest_alive:
                alive = {
                    member.peer
                    for member in record.members
                    if self.peers[member.peer].up
                    and self.peers[member.peer].ledger.incarnation == member.incarnation
                }
                if not is_quorum(alive, record.members):
                    return f"a majority of the members of record {index}"
        hosts = sum(peer.up and not peer.observer for peer in self.peers.values())
        begun = any(peer.up and peer.ledger.tally.counted for peer in self.peers.values())
        replicas = 1 if begun else self.settings.replicas_to_start
        if self.step == self.first_step and hosts < self.settings.stages * replicas:
            return "too many peers to begin"
        for stage in range(self.settings.stages) if self.step > self.first_step else ():
            holders = self.holders.get((stage, self.step), set())
            if not any(self._still_holds(peer_id, life) for peer_id, life in holders):
                return f"all copies of stage {stage} at step {self.step}"
        return None

    def _still_holds(self, peer_id: PeerID, life: int) -> bool:
        peer = self.peers[peer_id]
        return peer.up and peer.state_life == life


def _names(record: Record) -> str:
    if len(record.members) > _NAMES_IN_TRACE:
        return f"{len(record.members)} members"
    return "members " + " ".join(f"{m.peer.decode()}@{m.stage}" for m in record.members)


class TrainerCall(Call):
    """A trainer's question to a member."""

    __slots__ = ("ask", "trainer")
    world: PipelineWorld

    def __init__(
        self,
        world: PipelineWorld,
        trainer: PipelinePeer,
        ask: AskStage | AskSettle | AskClaim,
    ) -> None:
        super().__init__(world, trainer, ask.peer)
        self.trainer = trainer
        self.ask = ask

    @property
    def trainer_id(self) -> PeerID:
        return self.trainer.peer_id

    def serve(self, target: PipelinePeer) -> None:
        if isinstance(self.ask, AskStage):
            target.stage.serve(self.ask, self)
        else:
            target.stage.settle(self.trainer_id, self.ask, self.answer)

    def answer(self, make: MakeEvent) -> None:
        lies = self.world.peers[self.target_id].lies
        if lies is not None and not self.ended:
            make = lies.answer(self.trainer.peer_id, make)
        super().answer(make)

    def answered(self, make: MakeEvent) -> None:
        event = make(self.trainer.now_s)
        if self.world.detailed:
            self.world.log(f"{self.trainer.name} ! {event}")
        # Cancelled meanwhile: the core has to know that by itself.
        if self.trainer.calls.pop(self.ask.call, None) is not None:
            self.world.watch.see(self.trainer, CallEnded(self.ask, event))
        self.trainer.train(event)

    def failed(self) -> None:
        self.answered(lambda now_s: CallFailed(now_s, self.ask.call, None))


def draw_world(
    seed: int,
    *,
    detailed: bool = False,
    checkers: Sequence[type[Checker]] = ALL,
    first_step: int = 0,
) -> PipelineWorld:
    """Draw sizes, pace and faults of the standard mix.

    Args:
      first_step: of a run that goes on from the checkpoint of another.
    """
    rng = random.Random(f"options/{seed}")
    stages = rng.choice((1, 2, 3))
    peers = rng.randint(stages * 2, stages * 3 + 2)
    scale = rng.choice((1.0, 1.0, 3.0, 10.0, 30.0, 60.0))
    settings = LedgerSettings(
        stages=stages,
        microbatches=rng.choice((1, 4, 8, 16)),
        steps=first_step + random.Random(f"end/{seed}").choice((10, *(100_000,) * 11)),
        first_step=first_step,
        replicas_to_start=rng.choice((1, 1, 2)),
        evaluate_every=rng.choice((0, 3)),
        evaluation_microbatches=2,
        silence_s=2.0 * scale,
        reduce_s=8.0 * scale,
        lease_s=10.0 * scale,
    )
    return PipelineWorld(
        seed,
        settings,
        peers,
        PipelineFaults.draw(seed),
        scale=scale,
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.15)),
        reduce_s=rng.choice((0.0, 0.1, 0.5, 1.5)),
        detailed=detailed,
        checkers=checkers,
    )
