"""One simulated run: peers, network, directory, faults from the seed, and every checker watching."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings, Send
from protocols.ledger.messages import Accept, Accepted, Lease, Promise
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage, CallFailed
from protocols.ledger.view import Record
from tests.sim.checkers import ALL, Checker
from tests.sim.checkers.one_side_commits import is_quorum
from tests.sim.clock import Clock
from tests.sim.contest import Contest
from tests.sim.directory import SimDirectory
from tests.sim.exchange import Exchanges
from tests.sim.faults import Faults, Injector
from tests.sim.network import Network, Weather
from tests.sim.peer import SimPeer
from tests.sim.stage import MakeEvent
from tests.sim.topic import SimTopic

ACTIONS_MAX: Final = 2_000_000
"""Of one seed. The busiest of the first three hundred needs a quarter of that."""
_LOOK_S: Final = 5.0
_PROBE_S: Final = 1.0
_ALL_CONNECTED: Final = 64
_NAMES_IN_TRACE: Final = 64


class Watch:
    """Tells every checker that cares; those that do not are never called."""

    def __init__(self, checkers: list[Checker]) -> None:
        for name in (
            "decided", "learned", "settled", "accept_asked", "accepted", "promised", "leased", "step_applied",
            "state_reached", "died", "expelled", "gave_up", "asked", "call_ended", "said_void", "counted", "blamed", "looked", "ended",
        ):  # fmt: skip
            base = getattr(Checker, name)
            calls = tuple(getattr(c, name) for c in checkers if getattr(type(c), name) is not base)
            setattr(self, name, _together(calls))

    decided: Callable[..., None]
    learned: Callable[..., None]
    settled: Callable[..., None]
    accept_asked: Callable[..., None]
    accepted: Callable[..., None]
    promised: Callable[..., None]
    leased: Callable[..., None]
    step_applied: Callable[..., None]
    state_reached: Callable[..., None]
    died: Callable[..., None]
    expelled: Callable[..., None]
    gave_up: Callable[..., None]
    asked: Callable[..., None]
    call_ended: Callable[..., None]
    said_void: Callable[..., None]
    counted: Callable[..., None]
    blamed: Callable[..., None]
    looked: Callable[..., None]
    ended: Callable[..., None]


def _together(calls: tuple[Callable[..., None], ...]) -> Callable[..., None]:
    def tell(*args: object) -> None:
        for call in calls:
            call(*args)

    return calls[0] if len(calls) == 1 else tell


class World:
    """Everything in one run, replayable from `seed`.

    Args:
      scale: seconds of this run per second of the standard one; deadlines, computing and faults stretch alike.
      reduce_s: what exchanging a gradient takes, of the standard run.
      compute_s: what a forward takes, of the standard run.
      announce_s: how often a member announces itself; None: once in two of the times after which a silent peer is suspected.
      trainers: share of the peers that have data to train on; the others only host.
      in_flight: microbatches that one of them works on at once.
      deadlines_s: floor and ceiling of a trainer's requests; None: one and ten of these times.
      actions_max: after so much has been done the run is taken for endless, and fails.
      detailed: trace every message, not only records and faults.
    """

    def __init__(
        self,
        seed: int,
        settings: LedgerSettings,
        peer_count: int,
        faults: Faults,
        *,
        scale: float = 1.0,
        delay_s: float = 0.01,
        reduce_s: float = 0.0,
        compute_s: float = 0.05,
        announce_s: float | None = None,
        trainers: float = 1.0,
        in_flight: int = 4,
        deadlines_s: tuple[float, float] | None = None,
        actions_max: float = math.inf,
        detailed: bool = False,
        checkers: Sequence[type[Checker]] = ALL,
    ) -> None:
        self.seed = seed
        self.settings = settings
        self.faults = faults
        self.scale = scale
        self.detailed = detailed
        self.clock = Clock(actions_max=actions_max)
        self.rng = random.Random(f"world/{seed}")
        self.compute_s = compute_s * scale
        self.fetch_s = 0.5
        self.trainers, self.in_flight = trainers, in_flight
        self.deadlines_s = deadlines_s or (settings.silence_s, 10 * settings.silence_s)
        self.reduce_s = reduce_s
        self.broken_gradients, self.damaged_bytes = faults.broken_gradients, faults.damaged_bytes
        weather = Weather(delay_s, faults.loss, faults.repeat, faults.reordering, faults.heavy_tail)
        self.network = Network(self.clock, random.Random(f"network/{seed}"), weather)
        self.directory = SimDirectory(
            self, announce_s=announce_s or settings.silence_s * 2, stale=faults.stale_directory
        )
        self.topic = SimTopic(
            self,
            random.Random(f"topic/{seed}"),
            loss=faults.topic_loss,
            repeats=faults.topic_repeats,
        )
        self.trace: list[str] = []
        self.handled = 0
        """Events that the cores have taken."""
        self.records: dict[int, Record] = {}
        self.newest_record: Record | None = None
        self.liars: set[PeerID] = set()
        """Strangers and members that lie, or once did."""
        self.false_parts: dict[tuple[int, int], Counter[int]] = {}
        """Record and stage -> what lying members put into the reduced gradient."""
        self.forgers: set[PeerID] = set()
        """Honest but for what they are made to send, which nobody believes."""
        self.goal = 0
        self._healed_s: float | None = None
        self._interrupt: Callable[[SimPeer], None] | None = None
        self.contest: Contest | None = None
        self.holders: dict[tuple[int, int], set[tuple[PeerID, int]]] = {}
        """Who, in which life of its state, must hold a stage's state of a step."""
        self.checkers = [checker(self) for checker in checkers]
        self.watch = Watch(self.checkers)
        self._watched: dict[type, Callable[..., None]] = {
            Accept: self.watch.accept_asked,
            Accepted: self.watch.accepted,
            Promise: self.watch.promised,
            Lease: self.watch.leased,
        }
        self.exchanges = Exchanges(self)
        self.peers: dict[PeerID, SimPeer] = {}
        ids = [PeerID(b"peer%04d" % index) for index in range(peer_count)]
        self.rng.shuffle(ids)
        observers = min(faults.observers, peer_count - settings.stages)
        for index, peer_id in enumerate(ids):
            observer = index >= peer_count - observers
            self.peers[peer_id] = SimPeer(self, peer_id, founder=index == 0, observer=observer)

    # --- what peers use ---

    def log(self, text: str) -> None:
        self.trace.append(f"{self.clock.now_s:10.3f} {text}")

    def scaled(self, seconds: float) -> float:
        return seconds * self.scale

    def deliver(self, source: SimPeer, send: Send) -> None:
        """Cast a ledger message."""
        if source.lies is not None and send.peer != source.peer_id:
            send = source.lies.told(send)
        watched = self._watched.get(type(send.message))
        if watched is not None:
            watched(source.peer_id, send.message)
        if self.contest is not None and self.contest.loses(source.peer_id, send):
            return
        target = self.peers.get(send.peer)
        if target is not None:  # a stranger that made itself known gets nothing
            self.network.cast(source.peer_id, send.peer, target.receive, source.peer_id, send)

    def connected_to(self, peer: SimPeer) -> list[SimPeer]:
        """Who notices at once when this peer dies: in a small swarm everybody, in a large one those that talk to it."""
        others = [other for other in self.peers.values() if other.up and other is not peer]
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

    def received(self, peer: SimPeer, source: PeerID, send: Send) -> None:
        if self.detailed:
            self.log(f"{source.decode()} > {peer.name} {send.message}")

    def call(self, trainer: SimPeer, ask: AskStage | AskSettle | AskClaim) -> None:
        """Carry a question that is answered once: by the member, or by its deadline with nobody knowing."""
        if self.detailed:
            self.log(f"{trainer.name} ? {ask}")
        self.watch.asked(trainer, ask)
        call = trainer.calls[ask.call] = Call(self, trainer, ask)
        self.network.cast(trainer.peer_id, ask.peer, call.arrive)
        if self.network.reaches(trainer.peer_id, ask.peer):
            in_s = ask.deadline_s if isinstance(ask, AskStage) else self.deadlines_s[0]
        else:
            in_s = 0.05
            trainer.later(_PROBE_S, trainer.notice_down, ask.peer)
        call.deadline = self.clock.after(in_s, call.fail)

    def learned(self, peer: SimPeer, record: Record) -> None:
        """A peer takes a record: the first one to do so shows it to the checkers."""
        self.watch.learned(peer, record)
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
            self.watch.decided(record, before)
            interrupt, self._interrupt = self._interrupt, None
            if interrupt is not None and self._healed_s is None:
                interrupt(peer)
            if self._healed_s is not None and record.step >= self.goal:
                self.clock.stopped = True

    def at_next_decision(self, interrupt: Callable[[SimPeer], None]) -> None:
        """Do something to the one that decides the next record, in that moment."""
        self._interrupt = interrupt

    def damages(self, peer: SimPeer) -> bool:
        """Tell whether what this peer reduces now ends with other bytes than it should."""
        return self.rng.random() < self.damaged_bytes

    # --- what may be lost ---

    @property
    def step(self) -> int:
        """The newest committed step."""
        return self.newest_record.step if self.newest_record is not None else 0

    @property
    def healed_for_s(self) -> float:
        return self.clock.now_s - self._healed_s if self._healed_s is not None else 0.0

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

    def add_holder(self, peer: SimPeer, stage: int, step: int) -> None:
        self.holders.setdefault((stage, step), set()).add((peer.peer_id, peer.state_life))

    def state_reached(self, peer: SimPeer, stage: int, step: int, state: bytes) -> None:
        """A peer has computed or loaded a state."""
        self.add_holder(peer, stage, step)
        self.watch.state_reached(peer, stage, step, state)

    def went_back_to(self, peer: SimPeer, step: int) -> None:
        """A peer restarted with what was on its disk: what it had reduced since then is gone."""
        for (_, reached), holders in self.holders.items():
            if reached > step:
                holders.discard((peer.peer_id, peer.state_life))

    def gave_up(self, peer: SimPeer) -> None:
        """A peer drops the state it has, as a record says."""
        self.watch.gave_up(peer)
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
        if self.step == 0 and hosts < self.settings.stages * replicas:
            return "too many peers to begin"
        for stage in range(self.settings.stages) if self.step > 0 else ():
            holders = self.holders.get((stage, self.step), set())
            if not any(self._still_holds(peer_id, life) for peer_id, life in holders):
                return f"all copies of stage {stage} at step {self.step}"
        return None

    def _still_holds(self, peer_id: PeerID, life: int) -> bool:
        peer = self.peers[peer_id]
        return peer.up and peer.state_life == life

    # --- the run ---

    def add_peer(self) -> None:
        """A volunteer comes along."""
        peer_id = PeerID(b"peer%04d" % len(self.peers))
        peer = self.peers[peer_id] = SimPeer(self, peer_id)
        self.log(f"join {peer.name}")
        peer.start()

    def begin(self) -> None:
        """Start all peers, and the looks at them."""
        for peer in list(self.peers.values()):
            peer.start()
        self._look()

    def _look(self) -> None:
        self.watch.looked()
        self.clock.after(self.scaled(_LOOK_S), self._look)

    def _heal(self) -> None:
        """End all faults: what is up stays up, what is cut is joined, what is stopped goes on."""
        self.log("heal")
        self._healed_s = self.clock.now_s
        self.contest = None
        self.network.heal()
        self.directory.heal()
        self.topic.heal()
        self.broken_gradients = self.damaged_bytes = 0.0
        for peer in self.peers.values():
            peer.go_on()
            peer.lies = None

    def run(self, *, safety_s: float, steps_after: int, liveness_s: float) -> None:
        """Safety under faults, then healing and `steps_after` more steps. Raises ViolationError."""
        self.begin()
        Injector(self, self.scaled(safety_s)).plan()
        self.goal = self.settings.steps + 1
        self.clock.run_until(self.scaled(safety_s))
        self._heal()
        self.goal = min(self.settings.steps, self.step + steps_after)
        self.clock.run_until(self.scaled(safety_s + liveness_s))
        self.watch.looked()
        self.watch.ended()


def _names(record: Record) -> str:
    if len(record.members) > _NAMES_IN_TRACE:
        return f"{len(record.members)} members"
    return "members " + " ".join(f"{m.peer.decode()}@{m.stage}" for m in record.members)


class Call:
    """One question on its way, and its one answer."""

    __slots__ = ("ask", "deadline", "ended", "life", "trainer", "world")

    def __init__(
        self, world: World, trainer: SimPeer, ask: AskStage | AskSettle | AskClaim
    ) -> None:
        self.world = world
        self.trainer = trainer
        self.ask = ask
        self.life = trainer.life
        self.ended = False
        self.deadline = 0
        """Of the clock's plans, the one that fails this call."""

    def arrive(self) -> None:
        target = self.world.peers[self.ask.peer]
        if not target.up or target.stopped:
            return
        if isinstance(self.ask, AskStage):
            target.stage.serve(self.ask, self)
        else:
            target.stage.settle(self.ask, self.answer)

    def wanted(self) -> bool:
        """Tell whether the trainer still waits, as far as the member can know: a closed stream is noticed, a cut not."""
        return not self.ended or not self.world.network.reaches(self.trainer.peer_id, self.ask.peer)

    def answer(self, make: MakeEvent) -> None:
        if self.ended:
            return
        lies = self.world.peers[self.ask.peer].lies
        if lies is not None:
            make = lies.answer(self.trainer.peer_id, make)
        self.world.network.cast(self.ask.peer, self.trainer.peer_id, self.end, make)

    def cancel(self) -> None:
        """The trainer does not wait any more."""
        if not self.ended:
            self.ended = True
            self.world.clock.cancel(self.deadline)

    def fail(self) -> None:
        self._end(lambda now_s: CallFailed(now_s, self.ask.call, None))

    def end(self, make: MakeEvent) -> None:
        """The answer is here."""
        if self._end(make):
            self.world.clock.cancel(self.deadline)

    def _end(self, make: MakeEvent) -> bool:
        trainer = self.trainer
        if self.ended or not trainer.up or trainer.life != self.life:
            return False
        self.ended = True
        trainer.report(self._tell, make)
        return True

    def _tell(self, make: MakeEvent) -> None:
        event = make(self.trainer.now_s)
        if self.world.detailed:
            self.world.log(f"{self.trainer.name} ! {event}")
        # Cancelled meanwhile: the core has to know that by itself.
        if self.trainer.calls.pop(self.ask.call, None) is not None:
            self.world.watch.call_ended(self.trainer, self.ask, event)
        self.trainer.train(event)


def draw_world(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ALL
) -> World:
    """Draw sizes, pace and faults of the standard mix."""
    rng = random.Random(f"options/{seed}")
    stages = rng.choice((1, 2, 3))
    peers = rng.randint(stages * 2, stages * 3 + 2)
    scale = rng.choice((1.0, 1.0, 3.0, 10.0, 30.0, 60.0))
    settings = LedgerSettings(
        stages=stages,
        microbatches=rng.choice((1, 4, 8, 16)),
        steps=random.Random(f"end/{seed}").choice((10, *(100_000,) * 11)),
        replicas_to_start=rng.choice((1, 1, 2)),
        evaluate_every=rng.choice((0, 3)),
        evaluation_microbatches=2,
        silence_s=2.0 * scale,
        reduce_s=8.0 * scale,
        lease_s=10.0 * scale,
    )
    return World(
        seed,
        settings,
        peers,
        Faults.draw(seed),
        scale=scale,
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.15)),
        reduce_s=rng.choice((0.0, 0.1, 0.5, 1.5)),
        actions_max=ACTIONS_MAX,
        detailed=detailed,
        checkers=checkers,
    )


def run_seed(
    seed: int,
    *,
    detailed: bool = False,
    checkers: Sequence[type[Checker]] = ALL,
    on_world: Callable[[World], Any] | None = None,
) -> World:
    """Run one seed of the standard mix. Raises ViolationError, or whatever a core raises."""
    world = draw_world(seed, detailed=detailed, checkers=checkers)
    if on_world is not None:
        on_world(world)
    world.run(safety_s=160.0, steps_after=3, liveness_s=180.0)
    return world
