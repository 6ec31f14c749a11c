"""One peer of a collective run on the wire: feeds the core, and does what it decides. Nothing here decides.

Collective --effects--> compute thread (steps, outer gradients, means applied)
           --effects--> the averager, one round for each fragment that is due
           --effects--> members (where they are, their outer states)
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, assert_never

import trio
from torch import Tensor

from protocols.collective.collective import LAST_ROUNDS_MAX, Collective
from protocols.collective.events import (
    AdoptState,
    ApplyMean,
    AskStanding,
    BeginRound,
    CancelRound,
    CollectiveEffect,
    CollectiveEvent,
    DropMean,
    FetchState,
    Left,
    LookForContacts,
    MeanApplied,
    MeanArrived,
    RollBack,
    RolledBack,
    RoundBegun,
    RoundMissed,
    StandingAnswered,
    StandingFailed,
    StateAdopted,
    StateFailed,
    StateFetched,
    Trained,
    TrainStep,
)
from protocols.collective.fragments import Schedule
from protocols.collective.messages import (
    Leaving,
    Overtaken,
    RoundBegins,
    Standing,
    StandingWanted,
    decode_message_untrusted,
    encode_message,
)
from protocols.core import Blame, ContactsFound, DrainWanted, Received, Send, Tick
from protocols.errors import RemoteProtocolError
from protocols.frames import Limits
from protocols.ids import PeerID
from protocols.state_calls import STATE_SERVICE
from swarm.averaging.all_reduce import Averaged, Averager, RoundAbortedError
from swarm.averaging.exchange import AVERAGING_SERVICE
from swarm.calls import CALL_FAILURES, Answer, Incoming
from swarm.collective.holder import History, Holder, history_untrusted, member_name
from swarm.collective.info import OUTER
from swarm.driver import Driver
from swarm.endpoints import Endpoint
from swarm.hosting.errors import NonFiniteError
from swarm.learner.learner import TrainedBatch
from swarm.learner.task import Evaluation
from swarm.mode import RunContext
from swarm.resources import Resources
from swarm.state.part import Part
from swarm.state.snapshot import expected_specs
from swarm.state.transfer import Fetch, FetchError, Snapshots

log = logging.getLogger(__name__)

COLLECTIVE_SERVICE: Final = "collective"
_HEADER_BYTES: Final = 64 * 1024
_STANDING_S: Final = 8.0
_MISSED_ALONE: Final = 2
"""Rounds missed in a row after which members that cannot be reached are not waited for."""
_COUNTED: Final = (COLLECTIVE_SERVICE, AVERAGING_SERVICE)


@dataclass(slots=True)
class CollectiveHooks:
    """What the mode around a peer wants to hear of. Called on the event loop; must not wait, where it says nothing else."""

    trained: Callable[[TrainedBatch], None]
    evaluated: Callable[[Evaluation], None]
    averaged: Callable[[], Awaitable[None]]
    """The outer state has changed. May wait, for the compute thread only."""
    finished: Callable[[], Awaitable[None]]
    """All is trained and averaged: the outer state is the run's outcome. May wait."""
    look: Callable[[], None]
    left: Callable[[], None]


class CollectivePeer:
    """The shell of `protocols.collective.collective`.

    Args:
      kept: go on from what the holder has, instead of the initial parameters.
      run_step: does one local step; None does it on the compute thread.
    """

    def __init__(
        self,
        context: RunContext,
        resources: Resources,
        holder: Holder,
        averager: Averager,
        *,
        founds: bool,
        kept: bool,
        hooks: CollectiveHooks,
        run_step: Callable[[Callable[[], Any]], Awaitable[Any]] | None = None,
    ) -> None:
        self._context = context
        self._caller = resources.caller
        self._compute = resources.compute
        self._codec = resources.codec
        self._run_step = run_step or resources.compute.run_own
        self._holder = holder
        self._averager = averager
        self._hooks = hooks
        run = context.run
        self._evaluate_every = run.training.evaluate_every
        self._evaluated_at = holder.step
        self._finished = False
        self.core = Collective(
            context.me,
            holder.spec,
            Schedule(len(holder.fragments), holder.spec.local_steps, run.training.steps),
            rng=random.Random(context.rng.getrandbits(64)),
            founds=founds,
            kept=kept,
            step=holder.step,
            fragments=holder.kept(),
        )
        self._driver: Driver[CollectiveEvent] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self._nursery: trio.Nursery | None = None
        self._means: dict[int, Tensor] = {}
        """By fragment: here, and not applied yet."""
        self._groups: dict[int, tuple[bytes, ...]] = {}
        """Of these means."""
        self._handed_in: dict[int, Tensor] = {}
        """By fragment: our outer gradient in the round that it is in, or was in last if that was missed."""
        self._rounds: dict[tuple[int, int], trio.CancelScope] = {}
        """On their way, by fragment and version."""
        self._fetched: dict[int, tuple[dict[str, Tensor], History]] = {}
        self._snapshots = self._new_snapshots()
        self._specs = [
            expected_specs(holder.state(fragment)[1]) for fragment in range(len(holder.fragments))
        ]
        self.last_group: tuple[PeerID, ...] = ()

    def _new_snapshots(self) -> Snapshots:
        parts = len(self._holder.fragments)
        return Snapshots(self._part, self._compute, self._codec, asked_max=parts)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._context.guard.counts_on = lambda who: who in self.core.contacts
            await nursery.start(self._averager.run)
            for effect in self.core.start(trio.current_time()):
                self._perform(effect)
            task_status.started()
            await self._driver.run()

    def wire(self) -> dict[str, Endpoint]:
        """Return the services `collective` and `state`."""
        short = Limits(header_bytes_max=_HEADER_BYTES, body_bytes_max=0, tensors_max=0)
        return {
            **self._averager.wire(),
            COLLECTIVE_SERVICE: Endpoint(self.answer, lambda sender: short),
            STATE_SERVICE: Endpoint(self._answer_state, lambda sender: short),
        }

    def contacts_found(self, peers: tuple[PeerID, ...]) -> None:
        """These are in the run, by the directory."""
        self._averager.found(peers)
        self._driver.feed(ContactsFound(trio.current_time(), peers))

    def drain(self) -> None:
        """Tell the members, finish what is on its way; `hooks.left` is called then."""
        self._driver.feed(DrainWanted(trio.current_time()))

    @property
    def bytes_exchanged(self) -> int:
        """By calls of ours, in both directions: of averaging, and of finding out where others are."""
        services = self._caller.statistics().services
        counted = [services[name] for name in _COUNTED if name in services]
        return sum(traffic.bytes_sent + traffic.bytes_received for traffic in counted)

    async def on_model(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Do something with the model between two jobs."""
        return await self._compute.run_own(fn, *args)

    # --- events and effects ---

    def _tick(self, now_s: float) -> None:
        if now_s >= self.core.wake_at_s:
            self._driver.feed(Tick(now_s))

    def _dispatch(self, event: CollectiveEvent) -> None:
        for effect in self.core.handle(event):
            self._perform(effect)
        self._holder.step = self.core.step
        if self.core.finished != self._finished:
            self._finished = self.core.finished
            if self._finished:
                self._start(self._finish)

    def _perform(self, effect: CollectiveEffect) -> None:
        match effect:
            case TrainStep(step):
                self._start(self._train, step)
            case BeginRound():
                self._start(self._begin_round, effect)
            case ApplyMean():
                self._start(self._apply, effect)
            case RollBack():
                self._start(self._roll_back)
            case AdoptState(fragment, counted):
                self._start(self._adopt, fragment, counted)
            case CancelRound(fragment, version):
                self._rounds.setdefault((fragment, version), trio.CancelScope()).cancel()
            case DropMean(fragment):
                self._means.pop(fragment, None)
                self._groups.pop(fragment, None)
            case AskStanding(peer):
                self._start(self._ask_standing, peer)
            case FetchState(peer, fragment):
                self._start(self._fetch, peer, fragment)
            case LookForContacts():
                self._hooks.look()
            case Send(peer, message):
                self._caller.cast_nowait(peer, COLLECTIVE_SERVICE, encode_message(message))
            case Blame(peer, reason):
                self._context.guard.fault(peer, RemoteProtocolError(reason, peer))
            case Left():
                self._hooks.left()
            case _:
                assert_never(effect)

    def _start(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(fn, *args)

    # --- work on the model, one job at a time ---

    async def _train(self, step: int) -> None:
        trained, evaluation = await self._run_step(functools.partial(self._train_and_look, step))
        self._hooks.trained(trained)
        if evaluation is not None:
            self._hooks.evaluated(evaluation)
        self._driver.feed(Trained(trio.current_time(), trained.finite))

    def _train_and_look(self, step: int) -> tuple[TrainedBatch, Evaluation | None]:
        """On the compute thread."""
        trained = self._holder.train(step)
        return trained, self._holder.evaluate() if self._is_look_due() else None

    def _is_look_due(self) -> bool:
        """Tell whether a multiple of `evaluate_every` has been reached, or jumped over."""
        every, step = self._evaluate_every, self._holder.learner.trained
        due = bool(every) and step // every > self._evaluated_at // every
        if due:
            self._evaluated_at = step
        return due

    async def _finish(self) -> None:
        """All steps are trained and averaged."""
        self._hooks.evaluated(await self._compute.run_own(self._holder.evaluate))
        await self._hooks.finished()

    async def _begin_round(self, wanted: BeginRound) -> None:
        fragment, now_s = wanted.fragment, trio.current_time
        try:
            vector = await self._compute.run_own(self._holder.difference, fragment)
        except NonFiniteError:
            self._driver.feed(RoundBegun(now_s(), fragment, finite=False))
            return
        self._driver.feed(RoundBegun(now_s(), fragment, finite=True))
        nobody = not self._averager.core.contacts.live(now_s())
        if wanted.alone or (nobody and self.core.missed_in_row >= _MISSED_ALONE):
            self._arrived(wanted, vector, (self._context.me,))
            return
        self._handed_in[fragment] = vector
        averaged, may_count = await self._averaged(wanted, vector)
        if averaged is None:
            self._driver.feed(RoundMissed(now_s(), fragment, wanted.version, may_count))
        else:
            self._arrived(wanted, averaged.mean, averaged.group)

    async def _averaged(self, wanted: BeginRound, vector: Tensor) -> tuple[Averaged | None, bool]:
        """Average with others. None when that failed, or is not wanted any more; and whether our vector may count all the same."""
        place = wanted.fragment, wanted.version
        scope = self._rounds.setdefault(place, trio.CancelScope())
        if scope.cancel_called:  # before it began
            del self._rounds[place]
            return None, False
        may_count = True
        with scope:
            try:
                averaged = await self._averager.average(
                    f"{OUTER}/{wanted.fragment}", wanted.version, vector, float(wanted.weight),
                    common=wanted.line,
                )  # fmt: skip
                return averaged, True
            except RoundAbortedError as error:
                log.info("round missed: fragment=%d step=%d %s", *place, error)
                may_count = error.begun
            finally:
                del self._rounds[place]
        return None, may_count

    def _arrived(self, wanted: BeginRound, mean: Tensor, group: tuple[PeerID, ...]) -> None:
        self._means[wanted.fragment] = mean
        self._groups[wanted.fragment] = tuple(map(member_name, group))
        self.last_group = group
        now_s = trio.current_time()
        self._driver.feed(MeanArrived(now_s, wanted.fragment, wanted.version, group))

    async def _apply(self, wanted: ApplyMean) -> None:
        fragment = wanted.fragment
        history = History(wanted.version, wanted.lines, self._groups.pop(fragment))
        self._handed_in.pop(fragment, None)
        mean = self._means.pop(fragment)
        finite = True
        try:
            await self._compute.run_own(
                functools.partial(
                    self._holder.apply,
                    fragment,
                    mean,
                    history,
                    overlapped=wanted.overlapped,
                    last=wanted.version >= self._context.run.training.steps,
                )
            )
        except NonFiniteError:
            log.warning("a mean is of no use: the outer step would not be finite")
            finite = False
        self._driver.feed(MeanApplied(trio.current_time(), fragment, finite))
        if finite:
            await self._hooks.averaged()

    async def _roll_back(self) -> None:
        await self._compute.run_own(self._holder.roll_back)
        log.warning("the model was not finite: back to the outer parameters")
        self._driver.feed(RolledBack(trio.current_time()))

    async def _adopt(self, fragment: int, counted: bool) -> None:
        state, history = self._fetched.pop(fragment)
        handed_in = self._handed_in.pop(fragment, None) if counted else None
        finite = True
        try:
            await self._compute.run_own(
                functools.partial(self._holder.adopt, fragment, state, history, counted=handed_in)
            )
            self._snapshots = self._new_snapshots()  # versions may come again on another line
        except NonFiniteError:
            finite = False
        self._driver.feed(StateAdopted(trio.current_time(), fragment, finite))

    # --- members ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call, or take one cast, of the service `collective`."""
        message = decode_message_untrusted(incoming.message)
        match message:
            case StandingWanted():
                return Answer(encode_message(self.core.standing))
            case RoundBegins() | Overtaken() | Leaving():
                self._driver.feed(Received(trio.current_time(), incoming.peer, message))
                return Answer()
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} asks for nothing")

    async def _ask_standing(self, peer: PeerID) -> None:
        try:
            answer = await self._caller.call(
                peer, COLLECTIVE_SERVICE, encode_message(StandingWanted()), deadline_s=_STANDING_S
            )
            with self._caller.guard.blaming(peer):
                standing = decode_message_untrusted(answer.message)
                if not isinstance(standing, Standing):
                    raise RemoteProtocolError("what was wanted is a Standing")
        except CALL_FAILURES as error:
            log.info("no standing: peer=%s reason=%s", peer, error)
            self._driver.feed(StandingFailed(trio.current_time(), peer))
            return
        self._driver.feed(StandingAnswered(trio.current_time(), peer, standing))

    async def _answer_state(self, incoming: Incoming) -> Answer:
        return await self._snapshots.answer(incoming)

    def _part(self, name: str) -> Part | None:
        """Return a fragment's outer state, as members fetch it."""
        where, _, index = name.partition("/")
        known = where == OUTER and index.isascii() and index.isdigit() and len(index) < 4
        if not known or int(index) >= len(self._holder.fragments) or not self.core.ready:
            return None
        fragment = int(index)
        return Part(
            name,
            self._holder.histories[fragment].version,
            functools.partial(self._holder.state, fragment),
            load=lambda tensors: None,
        )

    async def _fetch(self, peer: PeerID, fragment: int) -> None:
        """Fetch a fragment's outer state from a member."""
        fetch = Fetch(
            self._caller, self._codec, self._specs[fragment],
            part=f"{OUTER}/{fragment}", version=None,
        )  # fmt: skip
        try:
            state = await fetch.run([peer])
            with self._caller.guard.blaming(peer):
                history = history_untrusted(state.version, state.tensors)
                if history.version > self._context.run.training.steps + LAST_ROUNDS_MAX:
                    raise RemoteProtocolError("an outer state of a step that the run has not")
        except (FetchError, RemoteProtocolError) as error:
            log.warning("outer state not fetched: peer=%s reason=%s", peer, error)
            self._driver.feed(StateFailed(trio.current_time(), fragment, peer))
            return
        log.info("outer state fetched: fragment=%d step=%d", fragment, history.version)
        self._fetched[fragment] = dict(state.tensors), history
        now_s = trio.current_time()
        has_ours = member_name(self._context.me) in history.members
        self._driver.feed(
            StateFetched(now_s, fragment, peer, history.version, history.lines, has_ours)
        )
