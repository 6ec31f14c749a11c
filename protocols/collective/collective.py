"""One peer of a collective run: trains local steps, and averages how far it has come, fragment by fragment.

Rules:
  - One job at a time is done on our model (a step, an outer gradient, a mean applied); rounds go on beside it.
  - After the steps that `Schedule` names a fragment's outer gradient is taken and averaged. Its mean is applied after
    `overlap_steps` more, or when it comes; with `overlap_steps_max` trained and no mean here, the peer waits.
  - Only those with the same outer state of a fragment average it: rounds are named by the state's history.
  - A round that is missed changes nothing. What was trained stays in the model, and is in the next round's outer gradient.
    Whoever missed one asks members where they are, and takes over their outer state if they went on (`standings`).
  - A member that begins a round calls the others: who has trained enough since its last one joins at once, its own step jumping
    to the round's. So the fastest sets the pace, and slower ones take part with as many steps as they have.
  - After the last step of the run every fragment is averaged once more, so that the outcome has everybody's work in it: the
    peers' parameters themselves, without momentum.

| state | work on the model | rounds |
|---|---|---|
| starting | outer states of members are adopted | none |
| training | steps, rounds | yes |
| finished | none; outer states can be fetched | the last ones, until they succeed |
| leaving | ends the job it is in | those on their way end, for `_DRAIN_S` at most |

The shell drives it (`swarm.driver`): events in, effects out, in order. It keeps tensors, answers each job with its event, and
answers StandingWanted from `standing`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final, TypeAlias, assert_never

from protocols.collective.events import (
    AdoptState,
    ApplyMean,
    BeginRound,
    CancelRound,
    CollectiveEffect,
    CollectiveEvent,
    DropMean,
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
from protocols.collective.messages import Leaving, Overtaken, RoundBegins, Standing
from protocols.collective.rounds import Fragment
from protocols.collective.settings import CollectiveSpec
from protocols.collective.whereabouts import Whereabouts
from protocols.core import Blame, ContactsFound, DrainWanted, Received, Send, Tick
from protocols.errors import LocalProtocolError
from protocols.ids import PeerID

BROKEN_MAX: Final = 3
"""Steps in a row whose gradient is not finite; then the outer parameters are better than ours."""
LAST_ROUNDS_MAX: Final = 8
"""Tries of a round after the last step: they are called by the steps that would follow."""
GONE_S: Final = 60.0
"""Who left is named by the directory a little longer."""
CALLED_MAX: Final = 64
"""Members that are told of a round that begins; the group's meeting place finds the others."""
_LOOK_S: Final = 5.0
"""Between two looks in the directory that strangers can cause."""
_DRAIN_S: Final = 10.0

Job: TypeAlias = TrainStep | BeginRound | ApplyMean | RollBack | AdoptState
_ANSWER_TO: Final[dict[type[Job], type[CollectiveEvent]]] = {
    TrainStep: Trained,
    BeginRound: RoundBegun,
    ApplyMean: MeanApplied,
    RollBack: RolledBack,
    AdoptState: StateAdopted,
}


class Collective:
    """The core of mode `collective`.

    Args:
      founds: we begin the run, so nobody is asked for a state.
      kept: `step` and `fragments` are of an earlier life, and worth keeping.
      step: local steps behind the state that we begin with.
      fragments: the history of each fragment; None is that of the run's initial parameters.
    """

    def __init__(
        self,
        own: PeerID,
        spec: CollectiveSpec,
        schedule: Schedule,
        *,
        rng: random.Random,
        founds: bool = False,
        kept: bool = False,
        step: int = 0,
        fragments: Sequence[Fragment] | None = None,
    ) -> None:
        self._own = own
        self._spec = spec
        self._schedule = schedule
        self._rng = rng
        self._kept = kept
        self._founds = founds
        self.step = step
        self.fragments = list(fragments or (Fragment() for _ in range(schedule.fragments)))
        self.contacts: tuple[PeerID, ...] = ()
        self.whereabouts = Whereabouts(own, rng=rng)
        self._job: Job | None = None
        self._broken = 0
        self._roll_back = False
        self.ready = False
        self._leaving_at_s = math.inf
        self._left = False
        self._looked_at_s = -math.inf
        self._left_s: dict[PeerID, float] = {}
        """When members left."""
        self._calls: dict[int, int] = {}
        """Rounds that others have begun: fragment -> the step that they belong to."""
        self.rounds = 0
        """That succeeded, over all fragments."""
        self.missed = 0
        self.missed_in_row = 0
        self.rollbacks = 0
        self.joined_early = 0
        self.last_round_s: float | None = None

    # --- what the shell reads ---

    @property
    def wake_at_s(self) -> float:
        return min(self.whereabouts.wake_at_s, self._leaving_at_s)

    @property
    def standing(self) -> Standing:
        """Where we are, for members that ask."""
        if not self.ready:
            return Standing(0, ())
        return Standing(self.step, tuple(fragment.standing for fragment in self.fragments))

    @property
    def starting(self) -> bool:
        return not self.ready

    @property
    def finished(self) -> bool:
        """All steps are trained, their rounds are over, and nobody has more than we."""
        over = self.ready and self.step >= self._schedule.steps
        sure = not self._is_unsure() and not self.whereabouts.is_behind
        return over and sure and self._nothing_on_its_way() and not self._last_due()

    @property
    def waiting_for_mean(self) -> bool:
        """It trains nothing because a mean is late."""
        return self.ready and self._job is None and self._is_blocked()

    @property
    def waits_for_peers(self) -> int:
        """How many peers are missing before anybody begins."""
        missing = self._spec.peers_to_start - len(self.contacts) - 1
        return max(0, missing) if self.step == 0 and not self.rounds else 0

    # --- events ---

    def start(self, now_s: float) -> list[CollectiveEffect]:
        """Begin: with what we have, or by asking others."""
        if self._founds and not self._kept:
            self.ready = True
        else:
            self.whereabouts.newcomer(now_s, counts=self._kept)
        return [*self._ask(now_s), *self._go_on(now_s)]

    def handle(self, event: CollectiveEvent) -> list[CollectiveEffect]:
        """Take one event and say what is to be done, in this order."""
        if self._left:
            return []
        done = self._take(event)
        return [*done, *self._ask(event.now_s), *self._go_on(event.now_s)]

    def _take(self, event: CollectiveEvent) -> Sequence[CollectiveEffect]:
        match event:
            case Tick():
                return ()
            case ContactsFound(now_s, peers):
                found = {
                    peer
                    for peer in peers
                    if peer != self._own and now_s >= self._left_s.get(peer, -math.inf) + GONE_S
                }
                if self.ready and not found <= set(self.contacts):
                    self.whereabouts.doubt(now_s)  # they may come from another side of the run
                self.contacts = tuple(sorted(found))
                return ()
            case Received():
                return self._received(event)
            case DrainWanted(now_s):
                self._leaving_at_s = min(self._leaving_at_s, now_s + _DRAIN_S)
                return [Send(peer, Leaving()) for peer in self.contacts]
            case MeanArrived():
                return self._mean_arrived(event)
            case RoundMissed():
                return self._round_missed(event)
            case StandingAnswered(_, peer, standing):
                return self._standing_answered(peer, standing)
            case StandingFailed(_, peer):
                self.whereabouts.failed(peer)
                return ()
            case StateFetched() | StateFailed():
                self.whereabouts.fetched(event)
                return ()
            case Trained() | RoundBegun() | MeanApplied() | RolledBack() | StateAdopted():
                return self._job_done(event)
            case _:
                assert_never(event)

    def _received(self, event: Received) -> Sequence[CollectiveEffect]:
        match event.message:
            case RoundBegins():
                return self._called(event.now_s, event.peer, event.message)
            case Overtaken(index, line):
                known = index < len(self.fragments) and event.peer in self.contacts
                if known and self.ready and line not in self.fragments[index].lines:
                    self.whereabouts.doubt(event.now_s)
                return ()
            case Leaving():
                if event.peer in self.contacts:
                    self._left_s[event.peer] = event.now_s
                    self.contacts = tuple(peer for peer in self.contacts if peer != event.peer)
                return ()
            case _:
                raise LocalProtocolError("the shell answers this message by itself")

    def _called(self, now_s: float, peer: PeerID, call: RoundBegins) -> Sequence[CollectiveEffect]:
        """A member averages a fragment: join it at once, if we may."""
        if call.fragment >= len(self.fragments):
            return [
                Blame(peer, f"begins a round of fragment {call.fragment}, which the run has not")
            ]
        if peer not in self.contacts:
            return self._stranger(now_s)
        fragment = self.fragments[call.fragment]
        if not self.ready:
            return []
        if call.line in fragment.lines[1:]:
            return [Send(peer, Overtaken(call.fragment, fragment.line))]
        if fragment.round == "none" and self.step >= self._schedule.steps:
            self._called_to_the_last(now_s, fragment, call)
        elif fragment.round == "none":
            due = self._schedule.next_due(call.fragment, self.step)
            if call.line != fragment.line:
                self.whereabouts.doubt(now_s)  # they go on from another state
            elif call.version == due or fragment.round_version < call.version <= self.step:
                self._calls[call.fragment] = call.version
        elif call.line != fragment.line and call.version <= fragment.round_version:
            self.whereabouts.doubt(now_s)  # the run has two sides
        return []

    def _called_to_the_last(self, now_s: float, fragment: Fragment, call: RoundBegins) -> None:
        """All steps are trained, and somebody has work that is not averaged yet: nobody else would come to its round."""
        last = self._schedule.steps + LAST_ROUNDS_MAX
        if call.line != fragment.line:
            self.whereabouts.doubt(now_s)
        elif fragment.round_version < call.version <= last:
            fragment.called_to = call.version

    def _follow_calls(self) -> None:
        """Join rounds that others have begun: between two jobs, so that who is about to be there trains that step too."""
        for index, version in list(self._calls.items()):
            fragment = self.fragments[index]
            enough = fragment.trained >= self._spec.early_share * self._spec.local_steps
            if fragment.round_version >= version or fragment.round != "none":
                del self._calls[index]
            elif enough or version == self._schedule.steps:
                del self._calls[index]
                self.joined_early += self.step < version
                self.step = max(self.step, version)
                fragment.called_to = version

    def _stranger(self, now_s: float) -> list[CollectiveEffect]:
        """Somebody takes part whom the directory has not named: look again, though not as often as strangers like."""
        if now_s < self._looked_at_s + _LOOK_S:
            return []
        self._looked_at_s = now_s
        return [LookForContacts()]

    def _mean_arrived(self, event: MeanArrived) -> Sequence[CollectiveEffect]:
        fragment = self.fragments[event.fragment]
        if fragment.round != "averaging" or fragment.round_version != event.version:
            return [DropMean(event.fragment)]
        fragment.round, fragment.group = "arrived", event.group
        return ()

    def _round_missed(self, event: RoundMissed) -> Sequence[CollectiveEffect]:
        fragment = self.fragments[event.fragment]
        if fragment.round == "averaging" and fragment.round_version == event.version:
            if event.may_count and not fragment.may_count:
                fragment.may_count = event.version
            self._miss(event.now_s, fragment)
        return ()

    def _miss(self, now_s: float, fragment: Fragment) -> None:
        """Nothing has changed: what we trained stays for the next round. Before that we ask where the others are."""
        fragment.round = "none"
        fragment.has_missed = True
        self.missed += 1
        self.missed_in_row += 1
        self.whereabouts.doubt(now_s)

    def _standing_answered(self, peer: PeerID, standing: Standing) -> Sequence[CollectiveEffect]:
        if standing.fragments and len(standing.fragments) != len(self.fragments):
            return [Blame(peer, f"says that the model has {len(standing.fragments)} fragments")]
        self.whereabouts.answered(peer, standing)
        return ()

    # --- work on the model ---

    def _job_done(
        self, event: Trained | RoundBegun | MeanApplied | RolledBack | StateAdopted
    ) -> Sequence[CollectiveEffect]:
        job, self._job = self._job, None
        if job is None or not isinstance(event, _ANSWER_TO[type(job)]):
            raise LocalProtocolError(f"{type(event).__name__} answers no job: {job}")
        match event:
            case Trained(_, finite):
                self._trained(finite=finite)
            case RoundBegun(_, index, finite):
                return self._begun(index, finite=finite)
            case MeanApplied(now_s, index, finite):
                self._applied(now_s, self.fragments[index], finite=finite)
            case StateAdopted(_, index, finite):
                taken = self.whereabouts.adopted(index, finite=finite)
                if finite and isinstance(job, AdoptState):
                    self.fragments[index].adopt(taken.version, taken.lines, counted=job.counted)
            case RolledBack():
                self._roll_back = False
                self._broken = 0
                self.rollbacks += 1
                for fragment in self.fragments:
                    fragment.trained = 0
        return ()

    def _trained(self, *, finite: bool) -> None:
        self.step = min(self.step + 1, self._schedule.steps)
        self._broken = 0 if finite else self._broken + 1
        self._roll_back = self._roll_back or self._broken >= BROKEN_MAX
        if finite:
            for fragment in self.fragments:
                fragment.trained += 1

    def _begun(self, index: int, *, finite: bool) -> Sequence[CollectiveEffect]:
        fragment = self.fragments[index]
        if not finite:
            fragment.round = "none"
            self._roll_back = True
            return ()
        fragment.round = "averaging"
        call = RoundBegins(index, fragment.round_version, fragment.line)
        called = self._rng.sample(self.contacts, min(CALLED_MAX, len(self.contacts)))
        return [Send(peer, call) for peer in called]

    def _applied(self, now_s: float, fragment: Fragment, *, finite: bool) -> None:
        if not finite:
            self._miss(now_s, fragment)
            return
        fragment.averaged()
        self.rounds += 1
        self.missed_in_row = 0
        self.last_round_s = now_s

    def _go_on(self, now_s: float) -> list[CollectiveEffect]:
        """Begin the next job, if there is one and nothing else is being done."""
        if now_s >= self._leaving_at_s or (self._is_leaving and self._nothing_on_its_way()):
            self._left = True
            return [Left()]
        if not self.ready and self.whereabouts.settled:
            self.ready = True
        if self._job is not None:
            return []
        if self.ready and not self._is_leaving:
            self._follow_calls()
        job = self._next_job()
        self._job = job
        return [job] if job is not None else []

    def _next_job(self) -> Job | None:
        for index, fragment in enumerate(self.fragments):
            taken = self.whereabouts.to_adopt(index, fragment.standing)
            if taken is not None and fragment.round == "none":
                counted = fragment.has_counted(taken.version, has_ours=taken.has_ours)
                return AdoptState(index, counted)
        if not self.ready:
            return None
        if self._roll_back:
            return RollBack()
        for index, fragment in enumerate(self.fragments):
            if fragment.round == "arrived" and self._may_apply(fragment):
                return ApplyMean(
                    index,
                    overlapped=self.step > fragment.begun_at_step,
                    version=fragment.round_version,
                    lines=fragment.next_lines,
                )
        if self._is_leaving or self.waits_for_peers:
            return None
        for index in self._due():
            return self._begin(index)
        if self._is_blocked() or self.step >= self._schedule.steps:
            return None
        return TrainStep(self.step)

    def _begin(self, index: int) -> BeginRound:
        fragment = self.fragments[index]
        version = max(self.step, fragment.round_version + 1)
        if fragment.called_to > fragment.round_version:
            version = fragment.called_to
        fragment.begin(version=version, step=self.step)
        # Who has nothing to hand in counts for one step, so that others are not alone.
        weight = min(max(1, fragment.trained), int(self._spec.averaging.weight_max))
        return BeginRound(index, version, fragment.line, weight, alone=not self.contacts)

    def _due(self) -> list[int]:
        """Return the fragments whose round begins now: we have trained them, and have not tried at this step."""
        if self.step >= self._schedule.steps:
            return self._last_due()
        due = self._schedule.due(self.step)
        return [
            index
            for index, fragment in enumerate(self.fragments)
            if fragment.round == "none"
            and fragment.trained
            and (
                (index in due and fragment.round_version < self.step)
                or fragment.called_to > fragment.round_version
            )
            and not self.whereabouts.is_after(index)
            and not (fragment.has_missed and not self.whereabouts.settled)
        ]

    def _last_due(self) -> list[int]:
        """Return the fragments with work, of ours or of others, that has not been averaged after the last step. After a round that
        was missed we first ask where the others are."""
        if self._is_unsure():
            return []
        last = self._schedule.steps + LAST_ROUNDS_MAX
        return [
            index
            for index, fragment in enumerate(self.fragments)
            if fragment.round == "none"
            and (fragment.trained or fragment.called_to > fragment.round_version)
            and fragment.round_version < last
        ]

    def _is_unsure(self) -> bool:
        return self.missed_in_row > 0 and not self.whereabouts.settled

    def _may_apply(self, fragment: Fragment) -> bool:
        ripe = self.step - fragment.begun_at_step >= self._spec.overlap_steps
        return ripe or self._is_leaving or self.step >= self._schedule.steps

    def _is_blocked(self) -> bool:
        """Tell whether a mean is so late that training waits for it."""
        return any(
            fragment.round in ("averaging", "arrived")
            and self.step - fragment.begun_at_step >= self._spec.tau_max
            for fragment in self.fragments
        )

    # --- leaving, and whom to ask ---

    @property
    def _is_leaving(self) -> bool:
        return self._leaving_at_s < math.inf

    def _nothing_on_its_way(self) -> bool:
        return self._job is None and all(fragment.round == "none" for fragment in self.fragments)

    def _ask(self, now_s: float) -> list[CollectiveEffect]:
        """Ask members where they are, and fetch what they are ahead with."""
        if self._is_leaving:
            return []
        effects = self.whereabouts.go_on(
            now_s, self.contacts, [fragment.standing for fragment in self.fragments]
        )
        ahead = self.whereabouts.step - self.step
        if ahead > 0 and (not self.ready or ahead > self._spec.local_steps):
            self.step = min(self.whereabouts.step, self._schedule.steps)
        for index, version in self.whereabouts.rounds.items():
            if version <= self.step < self._schedule.steps:
                self._calls.setdefault(index, version)
        self.whereabouts.rounds.clear()
        return [*effects, *self._cancel_old_rounds()]

    def _cancel_old_rounds(self) -> list[CollectiveEffect]:
        """Nobody else comes to a round of a state that the others have left behind."""
        old = [
            (index, fragment)
            for index, fragment in enumerate(self.fragments)
            if fragment.round == "averaging"
            and fragment.cancelled != fragment.round_version
            and self.whereabouts.is_far_ahead(index, fragment.line)
        ]
        for _, fragment in old:
            fragment.cancelled = fragment.round_version
        return [CancelRound(index, fragment.round_version) for index, fragment in old]
