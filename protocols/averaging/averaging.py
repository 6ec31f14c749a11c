"""Group averaging: a peer that wants a round finds others that want it, and averages with them. The core.

A round is named by its key (what is averaged) and version (which state of it); both are opaque. For each key a peer wants one
round at a time, and none of a version that is not later than the last one begun. Steps:
  1. It goes to the round's meeting place (`contacts`) and says Join, again and again, until a group is formed. A place that
     does not answer is passed over; one that knows a better place says so.
  2. The place forms groups of those who came (`meeting`). All members must agree before anything begins; the first group that
     asks is the one.
  3. The group averages (`round`), and agrees on whose vectors count. After the first Begin a peer stays in this round until
     its end, and wants no other of this version: no vector counts twice.
  4. Who comes too late is told, and at which version the others are: it joins the next one.

The shell drives it (`swarm.driver`): events in, effects out, in order. It answers StartExchange and FetchMean, and keeps what it
may still be asked for until ForgetRound.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field
from typing import Final, assert_never

from protocols.averaging.accounts import Account
from protocols.averaging.contacts import Contacts, rank
from protocols.averaging.events import (
    AveragingEvent,
    ExchangeFailed,
    ForgetRound,
    LookForContacts,
    MeanReady,
    Phases,
    RoundAborted,
    RoundCancelled,
    RoundFinished,
    RoundWanted,
)
from protocols.averaging.meeting import Meetings
from protocols.averaging.messages import (
    Agree,
    Alone,
    Begin,
    Come,
    Decline,
    Form,
    Have,
    Join,
    Late,
    Leaving,
    Member,
    Message,
    Noted,
    Prepare,
    Promise,
    Trouble,
    round_id_of,
)
from protocols.averaging.round import Effects, Round
from protocols.averaging.settings import AveragingSpec
from protocols.core import Blame, ContactsFound, PeerDown, Received, Send, Tick
from protocols.errors import LocalProtocolError
from protocols.ids import PeerID

_ENDED_MAX: Final = 2
"""Rounds of one key that others may still ask about; the oldest is forgotten when another one ends."""
_HINTS_MAX: Final = 4
"""How often peers may send us on to another meeting place, for one round."""
_LOOK_S: Final = 2.0
"""Between two looks in the directory while nobody is known."""
_STATED_MAX: Final = 1024
_USUAL_SHARE: Final = 0.3
"""Of the newest exchange in what is remembered of how long they take."""
_PATIENCE: Final = 4
"""An exchange may take so many times longer than usual."""


@dataclass(slots=True)
class _Want:
    """A round that is wanted here, until it ends."""

    join: Join
    since_s: float
    place: PeerID
    answer_by_s: float
    """When the place counts as one that does not answer."""
    ask_at_s: float
    leave_by_s: float
    """When the place should have formed a group, whatever it answers."""
    asked: dict[PeerID, None] = field(default_factory=dict)
    excluded: set[PeerID] = field(default_factory=set)
    hints: int = 0
    formed_s: float = 0.0
    round: Round | None = None


@dataclass(slots=True)
class _Ended:
    round: Round
    until_s: float


class Averaging:
    """The core of group averaging, for all keys of one peer."""

    def __init__(self, own: PeerID, spec: AveragingSpec, *, rng: random.Random) -> None:
        self._own = own
        self._spec = spec
        self.contacts = Contacts(own)
        self._meetings = Meetings(own, spec, self.contacts, rng, passed=self._passed)
        self._wants: dict[str, _Want] = {}
        self._ended: dict[bytes, _Ended] = {}
        self._versions: dict[str, int] = {}
        """The version that was wanted here last, by key."""
        self._begun: dict[str, int] = {}
        """The newest version of which a round has begun here."""
        self._usual_s: dict[str, float] = {}
        self._stated: dict[str, dict[PeerID, int]] = {}
        """What others said of the version at which they are."""
        self._look_at_s = 0.0
        self.accounts: dict[str, Account] = {}

    @property
    def wake_at_s(self) -> float:
        """When it wants its next Tick."""
        times = [self._meetings.wake_at_s]
        for want in self._wants.values():
            seeking = min(want.ask_at_s, want.answer_by_s, want.leave_by_s)
            times.append(want.round.wake_at_s if want.round is not None else seeking)
        times += [ended.until_s for ended in self._ended.values()]
        return min(times)

    @property
    def held(self) -> int:
        """Things in memory that others can cause."""
        stated = sum(len(versions) for versions in self._stated.values())
        return self._meetings.held + len(self._ended) + stated

    def knows(self, round_id: bytes) -> bool:
        """Tell whether we take part in this round, or have lately."""
        return self._round(round_id) is not None

    def start(self, now_s: float) -> Effects:
        return [LookForContacts()]

    def handle(self, event: AveragingEvent) -> Effects:
        """Take one event and say what is to be done, in this order."""
        match event:
            case Tick(now_s):
                effects = self._tick(now_s)
            case Received(now_s, peer, message):
                self.contacts.heard(peer)
                effects = self._receive(now_s, peer, message)
            case PeerDown(now_s, peer):
                effects = self._lose(now_s, peer)
            case ContactsFound(now_s, peers):
                self.contacts.found(peers)
                effects = [
                    effect for want in self._seeking() for effect in self._look_around(now_s, want)
                ]
            case RoundWanted():
                effects = self._want(event)
            case RoundCancelled(now_s, key):
                effects = self._cancel(now_s, key)
            case MeanReady(now_s, round_id, exchange, digests):
                round_ = self._round(round_id)
                effects = round_.mean_ready(now_s, exchange, digests) if round_ is not None else []
            case ExchangeFailed(now_s, round_id, exchange, peer):
                round_ = self._round(round_id)
                effects = round_.failed(now_s, exchange, peer) if round_ is not None else []
            case _:
                assert_never(event)
        return effects + self._end_rounds(event.now_s)

    def _seeking(self) -> list[_Want]:
        return [want for want in self._wants.values() if want.round is None]

    def _round(self, round_id: bytes) -> Round | None:
        ended = self._ended.get(round_id)
        if ended is not None:
            return ended.round
        return next(
            (w.round for w in self._wants.values() if w.round and w.round.round_id == round_id),
            None,
        )

    # --- wanting ---

    def _want(self, event: RoundWanted) -> Effects:
        now_s, key = event.now_s, event.key
        if key in self._wants or event.version <= self._begun.get(key, -1):
            raise LocalProtocolError(f"version {event.version} of {key} is wanted out of order")
        if not 0 < event.weight <= self._spec.weight_max:
            raise LocalProtocolError(f"a weight of {event.weight} is none")
        self._versions[key] = event.version
        join = Join(key, event.version, event.layout, event.weight, event.bandwidth)
        want = self._wants[key] = _Want(join, now_s, self._own, math.inf, math.inf, math.inf)
        return [*self._go_to(now_s, want, self._place(now_s, want)), *self._look_if_alone(now_s)]

    def _look_if_alone(self, now_s: float) -> Effects:
        if len(self.contacts) or now_s < self._look_at_s:
            return []
        self._look_at_s = now_s + _LOOK_S
        return [LookForContacts()]

    def _place(self, now_s: float, want: _Want) -> PeerID:
        join = want.join
        return self.contacts.place(now_s, join.key, join.version, excluded=want.excluded)

    def _go_to(self, now_s: float, want: _Want, place: PeerID) -> Effects:
        """Join the others at this place."""
        want.place = place
        want.answer_by_s = now_s + self._spec.answer_s
        want.leave_by_s = now_s + self._spec.gather_ceiling_s + self._spec.answer_s
        return self._ask(now_s, want)

    def _ask(self, now_s: float, want: _Want) -> Effects:
        want.asked[want.place] = None
        want.ask_at_s = now_s + self._spec.answer_s / 3
        return [Send(want.place, want.join)]

    def _look_around(self, now_s: float, want: _Want) -> Effects:
        """Go to a better place, if there is one now."""
        place = self._place(now_s, want)
        if place == want.place or self._is_better(want.place, place, want):
            return []
        return self._go_to(now_s, want, place)

    def _is_better(self, a: PeerID, b: PeerID, want: _Want) -> bool:
        key, version = want.join.key, want.join.version
        return a not in want.excluded and rank(a, key, version) < rank(b, key, version)

    def _cancel(self, now_s: float, key: str) -> Effects:
        want = self._wants.pop(key, None)
        if want is None or want.round is None:
            return []
        if want.round.begun_s is not None:
            self._begun[key] = want.join.version
        effects = want.round.leave("nobody waits for it here")
        return [*effects, *self._keep(now_s, want.round)]

    def _abort(self, now_s: float, want: _Want, reason: str) -> Effects:
        key, version = want.join.key, want.join.version
        del self._wants[key]
        begun = want.round is not None and want.round.begun_s is not None
        if begun:
            self._begun[key] = version
        self._account(key).missed(now_s, reason)
        return [RoundAborted(key, version, reason, self._newest(now_s, key), begun)]

    def _newest(self, now_s: float, key: str) -> int:
        """Return the version at which the middle one of the others is, since a few of them may lie.

        Who has said nothing counts as being where we are.
        """
        own, stated = self._versions[key], self._stated.get(key, {})
        others = [peer for peer in self.contacts.live(now_s) if self.contacts.named(peer)]
        return statistics.median_low([stated.get(peer, own) for peer in others] or [own])

    def _state(self, key: str, peer: PeerID, version: int) -> None:
        """Remember at which version a peer says it is, for the keys that are wanted here."""
        if key not in self._versions or not self.contacts.named(peer):
            return
        stated = self._stated.setdefault(key, {})
        stated.pop(peer, None)
        if len(stated) >= _STATED_MAX:
            del stated[next(iter(stated))]
        stated[peer] = version

    def _account(self, key: str) -> Account:
        if key not in self.accounts:
            self.accounts[key] = Account(self._spec.unhealthy_after)
        return self.accounts[key]

    def _passed(self, key: str, version: int) -> int | None:
        """Return our version when that one is behind us, or never was ahead of us: nobody need come here for it."""
        newest = self._versions.get(key)
        return newest if newest is not None and newest > version else None

    # --- what comes ---

    def _receive(self, now_s: float, peer: PeerID, message: Message) -> Effects:
        match message:
            case Join():
                return self._receive_join(now_s, peer, message)
            case Noted():
                return self._receive_noted(now_s, peer, message)
            case Late():
                self._state(message.key, peer, message.newest)
                self._meetings.does_not_come(peer, message.key, message.version)
                return self._sent_away(now_s, peer, message, "came too late")
            case Alone():
                return self._sent_away(now_s, peer, message, "nobody else came")
            case Come():
                return self._receive_come(now_s, peer, message)
            case Form():
                return self._receive_form(now_s, peer, message)
            case Agree():
                return [*self._meetings.agree(now_s, peer, message.round_id)]
            case Decline():
                return [*self._meetings.lose(now_s, peer, message.round_id)]
            case Begin() | Have() | Trouble() | Prepare() | Promise() | Leaving():
                round_ = self._round(message.round_id)
                if round_ is None:  # of the past, or not ours: nobody can be blamed for that
                    return []
                return round_.receive(now_s, peer, message)
            case _:
                assert_never(message)

    def _receive_join(self, now_s: float, peer: PeerID, join: Join) -> Effects:
        if not 0 < join.weight <= self._spec.weight_max:
            return [Blame(peer, "wants a weight that is none")]
        self._state(join.key, peer, join.version)
        return [*self._meetings.join(now_s, peer, join)]

    def _wanted(self, key: str, version: int) -> _Want | None:
        """Return the want for which nothing is agreed yet."""
        want = self._wants.get(key)
        return (
            want
            if want is not None and want.join.version == version and want.round is None
            else None
        )

    def _receive_noted(self, now_s: float, peer: PeerID, noted: Noted) -> Effects:
        want = self._wanted(noted.key, noted.version)
        if want is None or peer != want.place:
            return []
        want.answer_by_s = now_s + self._spec.answer_s
        hint = noted.meeting
        if hint == peer or hint in want.excluded or want.hints >= _HINTS_MAX:
            return []
        if not self._is_better(hint, want.place, want):
            return []
        want.hints += 1
        return self._go_to(now_s, want, hint)

    def _sent_away(self, now_s: float, peer: PeerID, message: Late | Alone, why: str) -> Effects:
        """The place has no group for us; what others say of this round does not count."""
        want = self._wants.get(message.key)
        if want is None or want.join.version != message.version:
            return []
        agreed = want.round
        if agreed is not None and agreed.begun_s is not None:
            return []
        place = want.place if agreed is None else agreed.meeting
        return self._abort(now_s, want, why) if peer == place else []

    def _receive_come(self, now_s: float, peer: PeerID, come: Come) -> Effects:
        self._state(come.key, peer, come.version)
        mine = self._versions.get(come.key)
        ended = mine == come.version and come.key not in self._wants
        if mine is not None and (mine > come.version or ended):
            return [Send(peer, Late(come.key, come.version, mine))]
        want = self._wanted(come.key, come.version)
        if want is None or peer in want.asked or not self._is_better(peer, want.place, want):
            return []
        return self._go_to(now_s, want, peer)

    def _receive_form(self, now_s: float, peer: PeerID, form: Form) -> Effects:
        round_id = round_id_of(form, peer)
        want = self._wants.get(form.key)
        if want is None or want.join.version != form.version:
            return [Send(peer, Decline(round_id))]
        if not self._is_sound(form):
            return [Blame(peer, "formed a group that is none")]
        if peer not in want.asked or not self._is_ours(form, want.join):
            # A stranger, or who was asked by a former life of ours: not to be told apart, and in no case followed.
            self._account(form.key).invitations_refused += 1
            return [Send(peer, Decline(round_id))]
        agreed = want.round
        if agreed is not None and agreed.round_id == round_id:
            return agreed.agree() if agreed.begun_s is None else []
        if agreed is not None and (agreed.begun_s is not None or agreed.meeting != peer):
            return [Send(peer, Decline(round_id))]
        if want.formed_s == 0.0:
            want.formed_s = now_s
        want.round = Round(
            now_s, self._own, self._spec, form, peer, round_id, limit_s=self._limit_s(form.key)
        )
        spread_s = min(form.spread_s, self._spec.gather_ceiling_s)
        if peer != self._own:
            self._meetings.learn_spread(form.key, spread_s)
        return want.round.agree()

    def _is_sound(self, form: Form) -> bool:
        """Tell whether this can be a group at all: sorted, not too large, its weights are some."""
        peers = [member.peer for member in form.members]
        weights = [member.weight for member in form.members]
        return (
            peers == sorted({*peers})
            and len(peers) <= self._spec.group_max + 1
            and all(0 < weight <= self._spec.weight_max for weight in weights)
        )

    def _is_ours(self, form: Form, join: Join) -> bool:
        """Tell whether we are in it as we said."""
        own = Member(self._own, join.weight, join.bandwidth)
        return form.layout == join.layout and own in form.members

    def _limit_s(self, key: str) -> float:
        spec, usual_s = self._spec, self._usual_s.get(key)
        if usual_s is None:
            return spec.exchange_ceiling_s
        return min(max(_PATIENCE * usual_s, spec.exchange_floor_s), spec.exchange_ceiling_s)

    # --- time, and ends ---

    def _lose(self, now_s: float, peer: PeerID) -> Effects:
        self.contacts.down(now_s, peer)
        effects: Effects = [*self._meetings.lose(now_s, peer)]
        for want in list(self._wants.values()):
            if want.round is not None:
                effects += want.round.lose(now_s, peer)
            elif want.place == peer:
                effects += self._pass_over(now_s, want)
        return effects

    def _pass_over(self, now_s: float, want: _Want) -> Effects:
        """The place does not answer: take the next one. Nobody passes over itself."""
        if want.place != self._own:
            want.excluded.add(want.place)
        return self._go_to(now_s, want, self._place(now_s, want))

    def _tick(self, now_s: float) -> Effects:
        effects: Effects = [*self._meetings.tick(now_s)]
        for want in list(self._wants.values()):
            if want.round is not None:
                effects += want.round.tick(now_s)
            elif now_s >= min(want.answer_by_s, want.leave_by_s):
                effects += self._pass_over(now_s, want)
            elif now_s >= want.ask_at_s:
                effects += [*self._ask(now_s, want), *self._look_if_alone(now_s)]
        for round_id, ended in list(self._ended.items()):
            if now_s >= ended.until_s:
                effects += self._forget(round_id)
        return effects

    def _end_rounds(self, now_s: float) -> Effects:
        """Tell of the rounds that this event has ended."""
        effects: Effects = []
        for want in list(self._wants.values()):
            round_ = want.round
            if round_ is not None and round_.over:
                effects += self._end(now_s, want, round_)
        for round_id, ended in list(self._ended.items()):
            if ended.round.finished is not None and ended.round.all_hold:
                effects += self._forget(round_id)
        return effects

    def _end(self, now_s: float, want: _Want, round_: Round) -> Effects:
        key, version = want.join.key, want.join.version
        result = round_.finished
        if result is None:
            return self._give_up(now_s, want, round_)
        assert round_.begun_s is not None
        del self._wants[key]
        self._begun[key] = version
        phases = Phases(
            want.formed_s - want.since_s, round_.begun_s - want.formed_s, now_s - round_.begun_s
        )
        self._learn_usual(key, phases.averaging_s / max(1, round_.attempts))
        self._account(key).finished(now_s)
        done = RoundFinished(
            round_.round_id,
            key,
            version,
            result.exchange,
            round_.members_of(result.group),
            round_.left_out,
            round_.attempts,
            phases,
        )
        return [done, *self._keep(now_s, round_)]

    def _give_up(self, now_s: float, want: _Want, round_: Round) -> Effects:
        """A round that never began leads to another group; one that did is the end of this version here."""
        effects = self._keep(now_s, round_)
        if round_.begun_s is None:
            want.round = None
            want.formed_s = 0.0
            want.place = round_.meeting
            return [*effects, *self._pass_over(now_s, want)]
        key = want.join.key
        self._usual_s[key] = min(2 * self._limit_s(key) / _PATIENCE, self._spec.exchange_ceiling_s)
        assert round_.given_up is not None
        return [*effects, *self._abort(now_s, want, round_.given_up)]

    def _learn_usual(self, key: str, seconds: float) -> None:
        usual_s = self._usual_s.get(key, seconds)
        self._usual_s[key] = usual_s + _USUAL_SHARE * (seconds - usual_s)

    def _keep(self, now_s: float, round_: Round) -> Effects:
        """Answer others about this round for a while."""
        linger_s = round_.limit_s + 4 * self._spec.answer_s
        self._ended[round_.round_id] = _Ended(round_, now_s + linger_s)
        of_key = [i for i, e in self._ended.items() if e.round.form.key == round_.form.key]
        return [effect for old in of_key[:-_ENDED_MAX] for effect in self._forget(old)]

    def _forget(self, round_id: bytes) -> Effects:
        del self._ended[round_id]
        return [ForgetRound(round_id)]
