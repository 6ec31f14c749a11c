"""One peer of a gossip run: trains, pushes to its neighbours, averages what they push. Nobody waits for anybody.

Rules:
  - One job at a time is done on our model (a batch, a snapshot, an average); pushes go on beside it, from snapshots.
  - After `batches` batches, and the averages that are due, a snapshot is taken and pushed. One push is on its way per neighbour, and one more is owed,
    which will be of the newest snapshot: a slow neighbour gets fewer models, and holds up and stores nothing.
  - A part is averaged between two batches, when `buffer_share` of the live neighbours have sent it, or when
    `average_after_batches` have passed since its last average and one model is here.
  - A model is averaged once. A later one of the same sender replaces it; one that is not later is refused.
  - Whatever is not finite is refused at arrival. What became so here is rolled back, and was in no snapshot.

| state | work on the model | pushes | arrivals |
|---|---|---|---|
| starting (`Newcomer`) | none | none | taken |
| training | batches, snapshots, averages | yes | taken |
| finished (all batches done) | none; its model can still be fetched | the last snapshot | refused |
| leaving | ends the job it is in | those on their way end | refused |

The shell drives it (`swarm.driver`): events in, effects out, in order. It keeps tensors under handles, answers each
job with its event, bounds the body of a frame, and answers OfferWanted from `offer`. `takes_from` says whose models the
core would take; the simulator's link lets no other body through, the shell lets whoever is in the run send one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final, TypeAlias, assert_never

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.errors import LocalProtocolError
from protocols.gossip.events import (
    AnswerPush,
    Averaged,
    AverageModels,
    DropModel,
    GossipEffect,
    GossipEvent,
    Left,
    LookForContacts,
    ModelArrived,
    ModelFailed,
    ModelFetched,
    OfferAnswered,
    OfferFailed,
    PushAnswered,
    PushFailed,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.inbox import Inbox
from protocols.gossip.messages import Leaving, PushAnswer, Verdict
from protocols.gossip.neighbourhood import Neighbourhood
from protocols.gossip.newcomer import Newcomer
from protocols.gossip.pushes import ModelLayout, Pushes, Standing
from protocols.gossip.settings import GossipSpec
from protocols.gossip.topology import Topology
from protocols.ids import PeerID

ROLLBACKS_MAX: Final = 3
"""In a row; then a neighbour's model is wanted, since our last good one leads nowhere."""
_LOOK_S: Final = 5.0
"""Between two looks in the directory that strangers can cause."""
_DRAIN_S: Final = 10.0
"""What pushes on their way have to end when we leave."""

JobDone: TypeAlias = Trained | SnapshotTaken | Averaged | RolledBack
_ANSWER_TO: Final[dict[type[GossipEffect], type[JobDone]]] = {
    TrainBatch: Trained,
    TakeSnapshot: SnapshotTaken,
    AverageModels: Averaged,
}


class Gossip:
    """The core of mode `gossip`.

    Args:
      seed: the run's; with the PeerIDs it gives the graph.
      epoch: must be larger than in any earlier life of this PeerID: milliseconds since 1970 will do.
      steps: batches to train; None is without end.
      founds: we begin the run, so nobody is asked for a model.
      trained: batches behind the model that we still have from an earlier life; then nobody is asked either.
      joins: that model is what the run began from, so others may have gone on: they are asked.
      averages: in that model.
    """

    def __init__(
        self,
        own: PeerID,
        spec: GossipSpec,
        layout: ModelLayout,
        *,
        seed: int,
        epoch: int,
        rng: random.Random,
        steps: int | None = None,
        founds: bool = False,
        trained: int = 0,
        joins: bool = False,
        averages: int = 0,
    ) -> None:
        self._own = own
        self._spec = spec
        self._layout = layout
        self._parts = len(layout.part_elements)
        self._rng = rng
        self._steps = steps
        self._has_model = founds or (trained > 0 and not joins)
        self.neighbourhood = Neighbourhood(
            own, Topology(spec.neighbours, degree=spec.degree, seed=seed)
        )
        self._followed = 0
        """Up to which version of the neighbourhood the inbox has followed."""
        self._pushes = Pushes(self.neighbourhood, layout)
        self._inbox = Inbox(self._parts)
        self._newcomer: Newcomer | None = None
        self._epoch = epoch
        self._sequence = 0
        """Of the newest snapshot. It never starts anew, so that it names one snapshot also to the shell."""
        self._has_snapshot = False
        """Of this epoch."""
        self._trained = trained
        self._averages = averages
        self._since_snapshot = 0
        self._since_average = [0] * self._parts
        self._awaited: type[JobDone] | None = None
        """The event that ends the job in progress."""
        self._rollbacks = 0
        """In a row, without a good snapshot between."""
        self._train_at_s = -math.inf
        """No batch begins before."""
        self._look_at_s = -math.inf
        self._leave_by_s: float | None = None
        self._left = False

    # --- for the shell and for people ---

    @property
    def wake_at_s(self) -> float:
        """When it wants its next Tick."""
        if self._left:
            return math.inf
        newcomer = self._newcomer.wake_at_s if self._newcomer is not None else math.inf
        if self._leave_by_s is not None:
            return self._leave_by_s
        owed = self._pushes.wake_at_s if self._may_push else math.inf
        return min(self.neighbourhood.wake_at_s, newcomer, owed, self._job_due_s)

    @property
    def _job_due_s(self) -> float:
        """When the next batch may begin, while nothing but the pace holds it up."""
        idle = self._awaited is None and self._newcomer is None
        return self._train_at_s if idle and not self.finished and self._may_begin() else math.inf

    @property
    def standing(self) -> Standing:
        """How far our model is."""
        return Standing(
            epoch=self._epoch,
            sequence=self._sequence,
            trained=self._trained,
            averages=self._averages,
        )

    @property
    def offer(self) -> Standing | None:
        """What can be fetched from us: the newest snapshot. None: nothing yet."""
        return self.standing if self._has_snapshot and self._newcomer is None else None

    @property
    def finished(self) -> bool:
        """Whether all batches are trained."""
        return self._steps is not None and self._trained >= self._steps

    @property
    def starting(self) -> bool:
        """Whether it has no first model yet."""
        return self._newcomer is not None

    @property
    def waiting(self) -> int:
        """Models that wait to be averaged."""
        return self._inbox.total()

    def takes_from(self, peer: PeerID) -> bool:
        """Tell whether a frame of this peer may have a body at all: it is a neighbour, or may be one once it is heard."""
        return peer in self.neighbourhood.current or self.neighbourhood.is_out(peer)

    # --- driving it ---

    def start(self, now_s: float) -> Sequence[GossipEffect]:
        """Begin. Who founds the run, or has a model, trains at once; others look for a model first."""
        if self._has_model:
            return self._next_job(now_s)
        self._newcomer = self._new_newcomer(now_s, insist=False)
        return []

    def handle(self, event: GossipEvent) -> Sequence[GossipEffect]:
        """Take one event and say what is to be done, in this order."""
        if self._left:
            return self._after_leaving(event)
        match event:
            case Tick(now_s):
                return self._tick(now_s)
            case Received(now_s, peer, message):
                return self._received(now_s, peer, message)
            case PeerDown(now_s, peer):
                self.neighbourhood.gone(now_s, peer)
                return self._rewired(now_s)
            case ContactsFound(now_s, peers):
                self.neighbourhood.found(now_s, peers)
                return self._rewired(now_s)
            case DrainWanted(now_s):
                return self._drain(now_s)
            case Trained() | SnapshotTaken() | Averaged() | RolledBack():
                return self._job_done(event)
            case ModelArrived():
                return self._arrived(event)
            case PushAnswered(now_s, call, answer):
                known = self._pushes.answered(now_s, call, answer)
                return self._rewired(now_s) if known else []
            case PushFailed(now_s, call, busy):
                known = self._pushes.failed(now_s, call, busy=busy)
                return self._rewired(now_s) if known else []
            case OfferAnswered() | OfferFailed() | ModelFetched() | ModelFailed():
                return self._start_on(event)
            case _:
                assert_never(event)

    def _tick(self, now_s: float) -> list[GossipEffect]:
        if self._leave_by_s is not None and now_s >= self._leave_by_s:
            return self._leave()
        self.neighbourhood.tick(now_s)
        return [*self._rewired(now_s), *self._push_owed(now_s), *self._next_job(now_s)]

    # --- the first model ---

    def _new_newcomer(self, now_s: float, *, insist: bool) -> Newcomer:
        return Newcomer(
            now_s,
            layout=self._layout.digest,
            averages_wanted=self._spec.independent_averages,
            rng=self._rng,
            insist=insist,
        )

    def _start_on(
        self, event: OfferAnswered | OfferFailed | ModelFetched | ModelFailed
    ) -> list[GossipEffect]:
        newcomer = self._newcomer
        if newcomer is None:
            return [DropModel(event.handle)] if isinstance(event, ModelFetched) else []
        neighbours = self.neighbourhood.current
        match event:
            case OfferAnswered(now_s, peer, offer):
                effects = newcomer.answered(now_s, peer, offer, neighbours)
            case OfferFailed(now_s, peer) | ModelFailed(now_s, peer):
                effects = newcomer.failed(now_s, peer, neighbours)
            case ModelFetched():
                effects = newcomer.fetched(event, neighbours)
            case _:
                assert_never(event)
        return [*effects, *self._started(event.now_s)]

    def _started(self, now_s: float) -> list[GossipEffect]:
        """Go on to train, once there is a model."""
        newcomer = self._newcomer
        if newcomer is None or not newcomer.done:
            return []
        self._newcomer = None
        if newcomer.adopted is not None:
            _, offer = newcomer.adopted
            self._new_epoch()
            self._averages = offer.averages
            self._trained = max(self._trained, newcomer.trained)
        return self._next_job(now_s)

    def _new_epoch(self) -> None:
        """Our model does not follow from the one before."""
        self._epoch += 1
        self._has_snapshot = False
        self._since_snapshot = 0

    # --- work on the model ---

    def _job_done(self, event: JobDone) -> list[GossipEffect]:
        if type(event) is not self._awaited:
            raise LocalProtocolError(f"{type(event).__name__} answers no job")
        self._awaited = None
        effects: list[GossipEffect] = []
        match event:
            case Trained(_, finite):
                self._trained += 1
                self._since_snapshot += 1
                self._since_average = [since + 1 for since in self._since_average]
                self._inbox.batch_done()
            case SnapshotTaken(now_s, sequence, finite):
                if finite:
                    self._sequence = sequence
                    self._has_snapshot = True
                    self._rollbacks = 0
                    self._pushes.owe_all()
                    effects = self._push_owed(now_s)
            case Averaged(_, part, refused, finite):
                self._averages += 1
                self._since_average[part] = 0
                for peer in refused:
                    if (neighbour := self.neighbourhood.current.get(peer)) is not None:
                        neighbour.refused += 1
            case RolledBack(now_s):
                self._new_epoch()
                if self._rollbacks >= ROLLBACKS_MAX and self._leave_by_s is None:
                    self._rollbacks = 0
                    self._newcomer = self._new_newcomer(now_s, insist=True)
                    return self._rewired(now_s)
                finite = True
            case _:
                assert_never(event)
        if not finite:
            self._rollbacks += 1
            self._awaited = RolledBack
            return [RollBack()]
        return [*effects, *self._next_job(event.now_s)]

    def _next_job(self, now_s: float) -> list[GossipEffect]:
        """Say what to do with the model now: average it, copy it for pushes, or train it.

        In this order: what came during a batch is in the very next push, so news travels on after half a batch and not after
        one and a half. That is why the average is of the model as it was pushed last, with the newest batches on top
        (`swarm.gossip.arithmetic.average_`); averaged themselves, they would count `own_share` in what is pushed.
        """
        if self._awaited is not None or self._newcomer is not None:
            return []
        if self._leave_by_s is not None:
            return self._leave_when_idle()
        job = self._job()
        if isinstance(job, TrainBatch):
            if now_s < self._train_at_s:
                return []  # the pace that the run asks for: woken then
            self._train_at_s = now_s + self._spec.batch_every_s
        if job is None:
            return []
        self._awaited = _ANSWER_TO[type(job)]
        return [job]

    def _job(self) -> TakeSnapshot | AverageModels | TrainBatch | None:
        if not self.finished:
            for part in range(self._parts):
                if self._ready(part):
                    return AverageModels(part, self._inbox.take(part))
        if self._since_snapshot >= self._spec.batches or (self.finished and self._since_snapshot):
            self._since_snapshot = 0
            return TakeSnapshot(self._sequence + 1)
        if self.finished:
            return None
        return TrainBatch()

    def _may_begin(self) -> bool:
        enough = len(self.neighbourhood.current) >= self._spec.neighbours_to_start
        return bool(self._trained) or enough

    def _ready(self, part: int) -> bool:
        """Tell whether to average a part now. At least one batch is trained between two averages of it."""
        count, since = self._inbox.count(part), self._since_average[part]
        if not count or not since:
            return False
        if count >= self._spec.enough(self.neighbourhood.exchanging):
            return True
        return since >= self._spec.average_after_batches * self._parts

    # --- models of others ---

    def _arrived(self, event: ModelArrived) -> list[GossipEffect]:
        effects: list[GossipEffect] = []
        verdict, replaced = self._judge(event)
        effects.append(AnswerPush(event.handle, PushAnswer(verdict)))
        if replaced is not None:
            effects.append(DropModel(replaced))
        if verdict == "bad":
            effects.append(Blame(event.peer, "a model of another layout than the run's"))
        elif verdict == "non-finite":
            effects.append(Blame(event.peer, "a model with numbers that are not finite"))
        elif verdict == "unknown" and event.now_s >= self._look_at_s:
            self._look_at_s = event.now_s + _LOOK_S
            effects.append(LookForContacts())
        elif verdict == "taken":
            neighbour = self.neighbourhood.current[event.peer]
            neighbour.models += 1
            neighbour.heard_s = event.now_s
            neighbour.finished = False
        return [*effects, *self._rewired(event.now_s)]

    def _judge(self, event: ModelArrived) -> tuple[Verdict, int | None]:
        """Say what becomes of a model, and which one it replaces. The first check that fails counts."""
        push = event.push
        if self._leave_by_s is not None:
            return "draining", None
        if self.neighbourhood.knows(event.peer):
            self.neighbourhood.heard(event.now_s, event.peer)
        else:
            return "unknown", None
        if event.peer not in self.neighbourhood.current:
            return "no-neighbour", None
        if push.layout != self._layout.digest or push.part >= self._parts:
            return "bad", None
        if event.elements != self._layout.part_elements[push.part] or not event.dtype_right:
            return "bad", None
        if not event.finite:
            return "non-finite", None
        if self.finished:
            return "finished", None
        return self._inbox.offer(event.peer, push, event.handle)

    def _received(self, now_s: float, peer: PeerID, message: object) -> list[GossipEffect]:
        if not isinstance(message, Leaving):
            return [Blame(peer, "a message that is no cast of a gossip run")]
        self.neighbourhood.gone(now_s, peer)
        return self._rewired(now_s)

    def _push_owed(self, now_s: float) -> list[GossipEffect]:
        return [*self._pushes.due(now_s, self.standing)] if self._may_push else []

    @property
    def _may_push(self) -> bool:
        return self._has_snapshot and self._leave_by_s is None and self._newcomer is None

    def _rewired(self, now_s: float) -> list[GossipEffect]:
        """Follow a change of the neighbours: drop what is not theirs, push to the new ones, go on starting."""
        effects: list[GossipEffect] = []
        if self._followed != self.neighbourhood.version:
            self._followed = self.neighbourhood.version
            gone = self._inbox.keep_only(
                self.neighbourhood.current.keys(), self.neighbourhood.contacts
            )
            effects += [DropModel(handle) for handle in gone]
        if self._newcomer is not None:
            effects += self._newcomer.tick(now_s, self.neighbourhood.current)
            effects += self._started(now_s)
        if not self._trained:
            effects += self._next_job(now_s)
        return [*effects, *self._push_owed(now_s), *self._leave_when_idle()]

    # --- leaving ---

    def _drain(self, now_s: float) -> list[GossipEffect]:
        if self._leave_by_s is not None:
            return []
        self._leave_by_s = now_s + _DRAIN_S
        self._newcomer = None
        said: list[GossipEffect] = [Send(peer, Leaving()) for peer in self.neighbourhood.current]
        return [*said, *self._leave_when_idle()]

    def _leave_when_idle(self) -> list[GossipEffect]:
        if self._leave_by_s is None or self._awaited is not None or self._pushes.on_the_way:
            return []
        return self._leave()

    def _leave(self) -> list[GossipEffect]:
        if self._left:
            return []
        self._left = True
        self._leave_by_s = math.inf
        dropped: list[GossipEffect] = [DropModel(handle) for handle in self._inbox.keep_only(())]
        return [*dropped, Left()]

    def _after_leaving(self, event: GossipEvent) -> list[GossipEffect]:
        """Only what came late needs an answer."""
        if isinstance(event, ModelArrived):
            return [AnswerPush(event.handle, PushAnswer("draining"))]
        if isinstance(event, ModelFetched):
            return [DropModel(event.handle)]
        return []
