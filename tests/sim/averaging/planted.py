"""Mistakes in the averaging cores that a hurried change could bring in, one at a time, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from protocols.averaging.averaging import Averaging
from protocols.averaging.meeting import Meetings
from protocols.averaging.messages import Begin, Have
from protocols.averaging.round import Round
from protocols.core import Blame
from tests.sim.averaging.checkers import (
    AgreedFirst,
    AveragingGoesOn,
    Bounded,
    CountedOnce,
    EndsInTime,
    NobodyHonestBlamed,
    SameForAll,
    SurvivorsFinish,
)
from tests.sim.engine.subject import Planted

# --- replacements; each is the original with one thing wrong ---


def _settle_alone(self: Round, now_s: float) -> Any:
    """Whoever holds a mean takes it for what counts."""
    if not self.over and self._held is not None and self._accepted:
        self.finished = self._held
    return []


def _quorum_of_half(self: Round, *args: Any, **named: Any) -> None:
    """Half of the members are enough."""
    _init(self, *args, **named)
    self._quorum = max(1, len(self._peers) // 2)


def _adopt_nothing(self: Round, now_s: float, proposal: Any) -> Any:
    """A new attempt exchanges again, whatever members have said Have to."""
    for index, promise in list(proposal.promises.items()):
        bare = dataclasses.replace(promise, accepted=0, result=None)
        proposal.promises[index] = bare
    return _conclude(self, now_s, proposal)


def _want_again(self: Averaging, now_s: float, want: Any, round_: Round) -> Any:
    """A round that has begun is given up for another one of the same version."""
    round_.begun_s = None
    return _give_up(self, now_s, want, round_)


def _begin_when_one_agrees(self: Meetings, now_s: float, peer: Any, round_id: bytes) -> Any:
    """The group begins before all have agreed."""
    group = self._groups.get(round_id)
    if group is not None and group.state == "forming":
        group.agreed |= set(group.peers)
    return _agree(self, now_s, peer, round_id)


def _go_on_never(self: Round, now_s: float) -> Any:
    """Nobody takes over when a member does not deliver."""
    return []


def _conclude_with_all(self: Round, now_s: float, proposal: Any) -> Any:
    """The dead are exchanged with again."""
    effects = _conclude(self, now_s, proposal)
    everybody = tuple(range(len(self._peers)))

    def with_all(effect: Any) -> Any:
        begin = getattr(effect, "message", None)
        if not isinstance(begin, Begin) or begin.result is not None:
            return effect
        return dataclasses.replace(effect, message=dataclasses.replace(begin, group=everybody))

    return [with_all(effect) for effect in effects]


def _tick_without_end(self: Round, now_s: float) -> Any:
    """A round that leads nowhere is never given up."""
    self._end_at_s = math.inf
    act, self._act_at_s = self._act_at_s, math.inf
    effects = _tick(self, now_s)
    self._act_at_s = act + 1e9
    return effects


def _never_due(self: Meetings, what: Any, meeting: Any) -> float:
    """A group waits until everybody is there that the directory names."""
    return (
        _due_s(self, what, meeting)
        if not self._missing(meeting.last_s, what, meeting)
        else math.inf
    )


def _forget_never(self: Averaging, now_s: float, round_: Round) -> Any:
    """Rounds are remembered for ever."""
    old = dict(self._ended)
    _keep(self, now_s, round_)
    self._ended = old | self._ended
    return []


def _receive_blaming(self: Averaging, now_s: float, peer: Any, message: Any) -> Any:
    """A message of a round that is over is taken for a lie."""
    effects = _receive(self, now_s, peer, message)
    unknown = isinstance(message, Have) and self._round(message.round_id) is None
    return [*effects, Blame(peer, "of no round")] if unknown else effects


def _pass_over_never(self: Averaging, now_s: float, want: Any) -> Any:
    """A meeting place that does not answer is waited for."""
    return self._go_to(now_s, want, want.place)


def _no_hints(self: Round, now_s: float, sender: int, have: Any) -> Any:
    """Sums that differ between members are nobody's trouble; the first Have that comes is believed."""
    self._held = have.result if self._held is not None else None
    return _receive_have(self, now_s, sender, have)


_tick, _receive_have = Round.tick, Round._receive_have
_init, _conclude = Round.__init__, Round._conclude
_give_up, _keep, _receive = Averaging._give_up, Averaging._keep, Averaging._receive
_agree, _due_s = Meetings.agree, Meetings._due_s

SUITE: Final = (
    Planted("whoever holds a mean finishes with it", SameForAll, ((Round, "_settle", _settle_alone),)),
    Planted("half of the members are enough", SameForAll, ((Round, "__init__", _quorum_of_half),)),
    Planted("an attempt exchanges again what may count", SameForAll, ((Round, "_conclude", _adopt_nothing),), 39),
    Planted("the first result that is heard of is believed", SameForAll, ((Round, "_receive_have", _no_hints),)),
    Planted("a round is given up for another of its version", CountedOnce, ((Averaging, "_give_up", _want_again),)),
    Planted("a group begins when one member agrees", AgreedFirst, ((Meetings, "agree", _begin_when_one_agrees),)),
    Planted("a round that leads nowhere is never given up", EndsInTime, ((Round, "tick", _tick_without_end),)),
    Planted("a meeting place that does not answer is waited for", EndsInTime,
            ((Averaging, "_pass_over", _pass_over_never),)),
    Planted("rounds are remembered for ever", Bounded, ((Averaging, "_keep", _forget_never),), 50),
    Planted("a message of a round that is over is a lie", NobodyHonestBlamed,
            ((Averaging, "_receive", _receive_blaming),)),
    Planted("nobody takes over", SurvivorsFinish, ((Round, "_go_on", _go_on_never),), 52),
    Planted("the dead are exchanged with again", SurvivorsFinish, ((Round, "_conclude", _conclude_with_all),), 52),
    Planted("a group waits for everybody", AveragingGoesOn, ((Meetings, "_due_s", _never_due),)),
)  # fmt: skip
