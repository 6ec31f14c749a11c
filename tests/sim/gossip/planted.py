"""Mistakes in the gossip core that a hurried change could bring in, one at a time, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from protocols.core import Blame
from protocols.gossip.events import AnswerPush, ModelArrived, SnapshotTaken
from protocols.gossip.gossip import Gossip
from protocols.gossip.inbox import Inbox
from protocols.gossip.neighbourhood import Neighbourhood
from protocols.gossip.newcomer import Newcomer
from protocols.gossip.pushes import Pushes
from tests.sim.engine.subject import Planted
from tests.sim.gossip.checkers import (
    Bounded,
    CountedOnce,
    DeadIsReplaced,
    LeavesInTime,
    MixingGoesOn,
    NobodyHonestBlamed,
    NothingBrokenSpreads,
    OnlySound,
    TrafficBounded,
    TrainingNeverWaits,
)

# --- replacements; each is the original with one thing wrong ---


def _take_and_keep(self: Inbox, part: int) -> Any:
    """What has been averaged waits to be averaged again."""
    held = dict(self._held[part])
    taken = _take(self, part)
    self._held[part] = held
    return taken


def _offer_of_any_age(self: Inbox, peer: Any, push: Any, handle: int) -> Any:
    """An old model is taken for a new one."""
    sender = self._senders.get((peer, push.part))
    if sender is not None:
        sender.newest = (-1, -1)
    return _offer(self, peer, push, handle)


def _offer_without_replaced(self: Inbox, peer: Any, push: Any, handle: int) -> Any:
    """A model that is replaced is not let go."""
    return _offer(self, peer, push, handle)[0], None


def _judge_finite(self: Gossip, event: ModelArrived) -> Any:
    return _judge(self, dataclasses.replace(event, finite=True))


def _judge_any_layout(self: Gossip, event: ModelArrived) -> Any:
    push = dataclasses.replace(event.push, layout=self._layout.digest)
    return _judge(self, dataclasses.replace(event, push=push))


def _judge_any_size(self: Gossip, event: ModelArrived) -> Any:
    elements = self._layout.part_elements[event.push.part % self._parts]
    return _judge(self, dataclasses.replace(event, elements=elements))


def _judge_any_dtype(self: Gossip, event: ModelArrived) -> Any:
    return _judge(self, dataclasses.replace(event, dtype_right=True))


def _keep_all(self: Inbox, peers: Any, known: Any = None) -> list[int]:
    """Who is no neighbour any more is averaged all the same."""
    return []


def _fetched_is_good(self: Newcomer, event: Any, neighbours: Any) -> Any:
    """A neighbour's model is not compared with an untrained one."""
    return _fetched(self, dataclasses.replace(event, loss=event.own_loss), neighbours)


def _copy_is_finite(self: Gossip, event: Any) -> Any:
    """A snapshot is pushed without a look at its numbers."""
    if isinstance(event, SnapshotTaken):
        event = dataclasses.replace(event, finite=True)
    return _job_done(self, event)


def _found_and_remembered(self: Neighbourhood, now_s: float, peers: Any) -> None:
    """Who was left out is remembered for ever."""
    out = dict(self._out)
    _found(self, now_s, peers)
    self._out.update(out)


def _owed_at_once(self: Pushes) -> Any:
    """A push does not wait for the one before it."""
    called, self._called = self._called, set()
    owed = _owed(self)
    self._called = called
    return owed


def _push_and_owe(self: Pushes, peer: Any, neighbour: Any, standing: Any) -> Any:
    """A snapshot is owed again as soon as it is pushed."""
    push = _push(self, peer, neighbour, standing)
    neighbour.owed = True
    return push


def _begins_when_full(self: Gossip) -> bool:
    """Training waits for the models of all neighbours."""
    return not self._trained or self._inbox.count(0) >= len(self.neighbourhood.current)


def _never_finished(self: Gossip) -> bool:
    return False


def _drain_without_deadline(self: Gossip, now_s: float) -> Any:
    """Who leaves waits for whatever is on its way."""
    effects = _drain(self, now_s)
    self._leave_by_s = math.inf
    return effects


def _takes_from_neighbours(self: Gossip, peer: Any) -> bool:
    """Who was left out may not send a body, and is judged as a neighbour when it is heard."""
    return peer in self.neighbourhood.current


def _arrived_blaming_old(self: Gossip, event: ModelArrived) -> Any:
    """A model that was overtaken is taken for a lie."""
    effects = _arrived(self, event)
    answers = [e for e in effects if isinstance(e, AnswerPush)]
    return [*effects, *(Blame(event.peer, "old") for a in answers if a.answer.verdict == "old")]


def _refused_for_ever(self: Neighbourhood, now_s: float, peer: Any) -> None:
    """Who did not know us once is never pushed to again."""
    neighbour = self.current.get(peer)
    if neighbour is not None:
        neighbour.not_before_s = math.inf


def _gone_for_ever(self: Neighbourhood, now_s: float, peer: Any) -> None:
    """Who was left out is not tried again, and two that left each other out never meet."""
    _gone(self, now_s, peer)
    if peer in self._out:
        self._out[peer].until_s = math.inf


def _nothing(*args: Any, **named: Any) -> None:
    return None


def _no_effects(*args: Any, **named: Any) -> list[Any]:
    return []


def _never(*args: Any, **named: Any) -> bool:
    return False


_take, _offer = Inbox.take, Inbox.offer
_judge, _job_done, _arrived = Gossip._judge, Gossip._job_done, Gossip._arrived
_push, _owed, _drain = Pushes._push, Pushes._owed, Gossip._drain
_fetched, _found, _gone = Newcomer.fetched, Neighbourhood.found, Neighbourhood.gone

SUITE: Final = (
    Planted("what was averaged is averaged again", CountedOnce, ((Inbox, "take", _take_and_keep),)),
    Planted("an old model is taken for a new one", CountedOnce, ((Inbox, "offer", _offer_of_any_age),)),
    Planted("a model that is not finite is averaged", OnlySound, ((Gossip, "_judge", _judge_finite),)),
    Planted("a model of another layout is averaged", OnlySound, ((Gossip, "_judge", _judge_any_layout),)),
    Planted("a model of another size is averaged", OnlySound, ((Gossip, "_judge", _judge_any_size),)),
    Planted("a model of another dtype is averaged", OnlySound, ((Gossip, "_judge", _judge_any_dtype),)),
    Planted("a former neighbour's model is averaged", OnlySound, ((Inbox, "keep_only", _keep_all),)),
    Planted("a newcomer takes whatever it is given", OnlySound, ((Newcomer, "fetched", _fetched_is_good),)),
    Planted("a copy is pushed without a look at its numbers", NothingBrokenSpreads,
            ((Gossip, "_job_done", _copy_is_finite),)),
    Planted("a roll-back is no new epoch", NothingBrokenSpreads, ((Gossip, "_new_epoch", _nothing),)),
    Planted("a model that is replaced is not let go", Bounded, ((Inbox, "offer", _offer_without_replaced),)),
    Planted("who was left out is remembered for ever", Bounded,
            ((Neighbourhood, "found", _found_and_remembered),)),
    Planted("a push does not wait for the one before", TrafficBounded,
            ((Pushes, "_owed", _owed_at_once),)),
    Planted("a snapshot is pushed again and again", TrafficBounded, ((Pushes, "_push", _push_and_owe),)),
    Planted("failed pushes are not counted", DeadIsReplaced, ((Neighbourhood, "failed", _nothing),)),
    Planted("a lost peer stays a neighbour", DeadIsReplaced, ((Neighbourhood, "gone", _nothing),)),
    Planted("training waits for a full buffer", TrainingNeverWaits, ((Gossip, "_may_begin", _begins_when_full),)),
    Planted("a newcomer waits for who does not answer", TrainingNeverWaits,
            ((Newcomer, "failed", _no_effects),)),
    Planted("who has trained all its batches trains on", TrainingNeverWaits,
            ((Gossip, "finished", property(_never_finished)),)),
    Planted("who leaves waits for its pushes", LeavesInTime, ((Gossip, "_drain", _drain_without_deadline),), first_seed=23),
    Planted("who was left out may not send a body", NobodyHonestBlamed,
            ((Gossip, "takes_from", _takes_from_neighbours),)),
    Planted("an overtaken model is taken for a lie", NobodyHonestBlamed,
            ((Gossip, "_arrived", _arrived_blaming_old),)),
    Planted("nothing is ever averaged", MixingGoesOn, ((Gossip, "_ready", _never),)),
    Planted("who was left out once stays out", MixingGoesOn, ((Neighbourhood, "gone", _gone_for_ever),)),
    Planted("who did not know us once is never tried again", MixingGoesOn,
            ((Neighbourhood, "refused", _refused_for_ever),), first_seed=16),
)  # fmt: skip
