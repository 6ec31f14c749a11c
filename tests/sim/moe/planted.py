"""Mistakes in the experts' cores that a hurried change could bring in, one at a time, each with the checker that catches it."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Any, Final

from protocols.experts import evidence, placement, replicas, returning
from protocols.experts.admission import judge_call
from protocols.experts.announcements import Announcements
from protocols.experts.epoch import next_epoch
from protocols.experts.events import Adopt, AnswerHandOver, HandedOver, Left
from protocols.experts.lookups import LookUps
from protocols.experts.placement import Placement
from protocols.experts.replicas import Replicas
from protocols.experts.returning import Returning
from protocols.experts.roster import Roster
from protocols.experts.search import BeamSearch, Found
from protocols.experts.shelf import Shelf
from protocols.experts.view import PrefixView
from tests.sim.engine.subject import Planted
from tests.sim.moe import peer as shell
from tests.sim.moe.checkers import (
    Bounded,
    CopiesAreClose,
    ExpertsSettle,
    FindsOnlyTheLiving,
    FindsTheBest,
    FindsWhatIsThere,
    GoesOnWhereItWas,
    HandOverLosesNothing,
    KeptIsGenuine,
    LeftToItsHost,
    NobodyHonestBlamed,
    NoOlderSteps,
    NothingIsLost,
    OneHostPerEpoch,
    OneHostSoon,
    OnlyReplicasBlend,
    OnlyWhatAHostSigned,
    ReplicasAreFew,
    ReplicasFollow,
    RoomIsKept,
    SearchIsQuick,
    TakesBackTheNewest,
    TrafficBounded,
)

# --- replacements; each is the original with one thing wrong ---


def _count_only(epoch: int, rng: Any, *, taken_back: bool = False) -> int:
    """An epoch counts changes of hands and is not drawn."""
    return (epoch >> 20) + 1 << 20


def _never_overtaken(self: PrefixView, uid: Any, epoch: int, now_s: float) -> bool:
    """A gradient goes to the copy that it is for, though that has been replaced."""
    return False


def _frozen_steps(epoch: int | None, asked: int, *, frozen: bool) -> str:
    """An expert steps on while it is handed over."""
    return _judge_call(epoch, asked, frozen=False)


def _keeps_it(self: Placement, uid: Any) -> Any:
    """Nobody gives way."""
    return ()


def _offers_at_once(self: Placement, event: Any) -> Any:
    """Who does not answer is taken to have no snapshot."""
    down, self.roster.down = self.roster.down, {}
    effects = _offers_found(self, dataclasses.replace(event, silent=()))
    self.roster.down = down
    return effects


def _everybody_signs(self: Any, offer: Any) -> bool:
    """The newest offer counts, whoever signed it."""
    return True


def _last_resort(event: Any, missing_s: float) -> Any:
    """What a stranger signed is adopted when nobody else does."""
    return event.offers if missing_s >= evidence.UNSEEN_S else ()


def _own_witness(event: Any, missing_s: float) -> Any:
    """Who signed a snapshot may say itself that it was the host."""
    named = [(b"", seen) for _, seen in event.seen]
    return _witnessed(dataclasses.replace(event, seen=named), missing_s)


def _hurries(event: Any, memory: Any, best: Any, strangers: Any, roster: Any, missing_s: float) -> bool:  # fmt: skip
    """A minute is enough, though a keeper has offered a snapshot."""
    memory.offered = False
    return _waits(event, memory, best, (), dataclasses.replace(roster, down={}), missing_s)


def _first_come(self: Shelf, uid: Any, offer: Any, claims: Any) -> str:
    """A keeper takes the first snapshot from anybody, while it knows no host."""
    if not claims and uid not in self._offers:
        return "fetch"
    return _judge(self, uid, offer, claims)


def _former_host(self: Shelf, uid: Any, offer: Any, claims: Any) -> str:
    """A keeper follows the host of what it keeps into any newer epoch."""
    kept = self._offers.get(uid)
    if kept is not None and not claims and kept.host == offer.host:
        return "fetch" if offer.age > kept.age else "old"
    return _judge(self, uid, offer, claims)


def _any_hand_over(self: Placement, peer: Any, offer: Any, uid: Any) -> Any:
    """An expert is taken from whoever offers it."""
    if uid not in self._memory or uid in self._busy or uid in self.own or not self._has_room:
        return [AnswerHandOver(uid)]
    self._busy[uid] = "take over"
    return [Adopt(uid, next_epoch(1, self.rng), offer, (peer,))]


def _newest_wins(self: Shelf, uid: Any, offer: Any, claims: Any) -> str:
    """A keeper takes whatever seems newer."""
    kept = self._offers.get(uid)
    return "fetch" if kept is None or kept.age < offer.age else "old"


def _no_snapshot(self: Placement, uid: Any, own: Any) -> Any:
    """Nobody keeps copies."""
    return ()


def _first_snapshot_only(self: Placement, now_s: float) -> Any:
    """An expert is copied once."""
    effects = _snapshots(self, now_s)
    for own in self.own.values():
        if own.snapshot_due_s > now_s:
            own.snapshot_due_s = math.inf
    return effects


def _always_room(self: Placement) -> bool:
    """A node takes more experts than it has room for."""
    return True


def _handed_over_anyway(self: Placement, event: HandedOver) -> Any:
    """An expert whose successor did not answer is dropped."""
    return _handed_over(self, dataclasses.replace(event, taken=True))


def _leaves_at_once(self: Placement, now_s: float) -> Any:
    """Who is told to leave gives nothing away."""
    return [Left()]


def _one_less(self: BeamSearch, view: Any, now_s: float) -> Any:
    """The best is left out."""
    step = _proceed(self, view, now_s)
    return dataclasses.replace(step, uids=step.uids[1:]) if isinstance(step, Found) else step


def _patient(self: BeamSearch, view: Any, now_s: float) -> Any:
    """A search waits for every look."""
    self.until_s = math.inf
    return _proceed(self, view, now_s)


def _never_expires(self: PrefixView, statement: Any, now_s: float) -> bool:
    """A record counts for ever."""
    return bool(statement.peer != self._me)


def _learn_and_keep(self: PrefixView, prefix: Any, statements: Any, *, asked_s: float) -> None:
    """What is not in the directory any more is remembered, and renewed for ever."""
    before = self._known.get(prefix)
    fresh = {statement.peer: statement for statement in statements}
    if before is not None:
        for peer, statement in before.statements.items():
            fresh.setdefault(peer, dataclasses.replace(statement, until_s=math.inf))
    _learn(self, prefix, fresh.values(), asked_s=asked_s)


def _never_due(self: PrefixView, now_s: float) -> Any:
    """What is known is not looked up again: an empty prefix stays empty."""
    return [prefix for prefix in _due(self, now_s) if prefix not in self._known]


def _only_once(self: Announcements, experts: Any, replicas: Any = None) -> None:
    """Only the first expert under a prefix is stated."""
    stated: dict[Any, Any] = {}
    for uid, epoch in sorted(experts.items()):
        stated.setdefault(uid.prefixes[-1], (uid, epoch))
    _announce(self, dict(stated.values()), replicas)


def _hurry_again(self: LookUps, prefixes: Any, now_s: float) -> None:
    """What is asked for twice is looked up twice."""
    self._hurried.extend(prefixes)
    self._hurried.extend([*self._view.wanted] * 3)


def _begin_all(self: LookUps, now_s: float) -> Any:
    """A look does not wait for the one before, nor for its time."""
    begun = [*self._hurried, *self._view.wanted]
    self._hurried = deque()
    return begun


def _late_blocks(self: LookUps, now_s: float) -> Any:
    """A look that is late holds up all others of its prefix."""
    for prefix in self._under_way:
        self._under_way[prefix] = now_s
    return _begin(self, now_s)


def _suspect_again(self: Roster, peer: Any, now_s: float) -> bool:
    """Every failed call has its host probed."""
    return True


def _all_at_once(self: Placement, now_s: float) -> Any:
    """Who leaves offers an expert again as soon as it was refused."""
    self.roster.refused_s.clear()
    return _hand_over_all(self, now_s)


def _remember_all(self: Any, epoch: int, host: Any) -> None:
    """Every sight of a host is remembered for ever."""
    self.hosts[epoch] = host
    self.hosts[-len(self.hosts)] = host


def _never_takes(self: Placement, now_s: float, orphans: Any) -> Any:
    """An orphan waits for somebody else."""
    return [] if any(memory.epoch for memory in self._memory.values()) else _take(self, now_s, orphans)  # fmt: skip


def _states_for_ever(self: Announcements, experts: Any, replicas: Any = None) -> None:
    """What a node has hosted once it states for ever."""
    self._ever = {**getattr(self, "_ever", {}), **experts}  # type: ignore[attr-defined]
    _announce(self, self._ever, replicas)  # type: ignore[attr-defined]


def _is_one_of_ours(offer: Any) -> bool:
    """An honest keeper's offers are taken for forged ones."""
    return bool(offer.epoch % 7)


def _everybody_averages(self: Replicas, uid: Any, epoch: int, peer: Any) -> bool:
    """Whoever asks is averaged with."""
    return uid in self.own and self.own[uid].epoch == epoch


def _goes_on(self: Replicas, uid: Any, *, tell: bool) -> Any:
    """Who is a replica stays one."""
    return ()


def _keeps_all(self: Replicas) -> Any:
    """Experts that a node hosts push out nothing."""
    return ()


def _takes_it_anyway(self: Returning, uid: Any, live: Any) -> bool:
    """What a node had last it takes back, whoever goes on with it."""
    return True


def _takes_all_back(self: Returning, now_s: float, memories: Any, seen: Any, offers: Any) -> None:
    """A node that comes back takes whatever it has ever had."""
    _restore(self, now_s, memories, seen, offers)
    self.ours = {uid: offer.epoch for uid, offer in offers.items() if offer.host == self.me}


def _forgets_successors(self: Placement, event: HandedOver) -> Any:
    """Who has taken an expert over is known once the directory says it: who leaves at once never hears."""
    return _handed_over(self, dataclasses.replace(event, successor=0))


def _believes_records(self: Returning, now_s: float, memories: Any, seen: Any, offers: Any) -> None:
    """Who comes back takes a host for alive that died with it, and whose record has not expired."""
    _restore(self, now_s, memories, seen, offers)
    for memory in memories.values():
        memory.before = frozenset()


_restore = Returning.restore
_judge_call = judge_call
_witnessed = evidence._witnessed
_waits = evidence._waits
_judge = Shelf.judge
_offers_found = Placement._offers_found
_snapshots = Placement._snapshots
_handed_over = Placement._handed_over
_hand_over_all = Placement._hand_over_all
_take = Placement._take
_proceed = BeamSearch.proceed
_learn = PrefixView.learn
_due = PrefixView.due
_announce = Announcements.announce
_begin = LookUps.begin

SUITE: Final = (
    Planted("whoever asks is averaged with", OnlyReplicasBlend, ((Replicas, "is_replica", _everybody_averages),), first_seed=5),
    Planted("who is a replica stays one", ReplicasFollow, ((Replicas, "_stop", _goes_on),), first_seed=28),
    Planted("a replica that is gone is named for ever", ReplicasFollow, ((replicas, "LOST_S", 1e9),), first_seed=89),
    Planted("hosting does not go before", ReplicasAreFew, ((Replicas, "_make_room", _keeps_all),), first_seed=8),
    Planted("who comes back leaves nothing to others", LeftToItsHost, ((returning, "RETURN_S", 0.0),)),
    Planted("what goes on elsewhere is taken back", TakesBackTheNewest, ((Returning, "is_ours_still", _takes_it_anyway),), first_seed=27),
    Planted("what was handed over is taken back", TakesBackTheNewest, ((Returning, "restore", _takes_all_back),)),
    Planted("a record of who died as well is believed", GoesOnWhereItWas, ((Returning, "restore", _believes_records),), first_seed=30),
    Planted("who has taken an expert over is not remembered", TakesBackTheNewest, ((Placement, "_handed_over", _forgets_successors),), first_seed=13),
    Planted("an epoch is not drawn", OneHostPerEpoch, ((placement, "next_epoch", _count_only),)),
    Planted("a replaced copy is sent gradients", NoOlderSteps, ((PrefixView, "overtaken", _never_overtaken),)),
    Planted("nobody gives way", OneHostSoon, ((Placement, "_give_way", _keeps_it),)),
    Planted("nobody gives way, and all wait", ExpertsSettle, ((Placement, "_give_way", _keeps_it),)),
    Planted("an orphan is nobody's", OneHostSoon, ((Placement, "_take", _never_takes),)),
    Planted("a record of who gave way stays", OneHostSoon, ((Announcements, "announce", _states_for_ever),), first_seed=8),
    Planted("a node takes more than it has room for", RoomIsKept, ((Placement, "_has_room", property(_always_room)),), first_seed=8),
    Planted("an expert whose successor is silent is dropped", HandOverLosesNothing,
            ((Placement, "_handed_over", _handed_over_anyway),)),
    Planted("an expert steps while it is handed over", HandOverLosesNothing, ((shell, "judge_call", _frozen_steps),)),
    Planted("who leaves gives nothing away", HandOverLosesNothing, ((Placement, "_hand_over_all", _leaves_at_once),)),
    Planted("who is silent is taken to have no snapshot", NothingIsLost,
            ((Placement, "_offers_found", _offers_at_once),), first_seed=278),
    Planted("the newest offer counts, whoever signed it", OnlyWhatAHostSigned,
            ((evidence.Memory, "signed_by_a_host", _everybody_signs),), first_seed=5),
    Planted("a stranger's snapshot is the last resort", OnlyWhatAHostSigned, ((evidence, "_witnessed", _last_resort),), first_seed=5),
    Planted("a signer is its own witness", OnlyWhatAHostSigned, ((evidence, "_witnessed", _own_witness),), first_seed=5),
    Planted("nobody waits for who has offered a snapshot", NothingIsLost, ((evidence, "_waits", _hurries),), first_seed=15),
    Planted("a keeper that knows no host takes anybody's", KeptIsGenuine, ((Shelf, "judge", _first_come),)),
    Planted("a keeper follows a former host", KeptIsGenuine, ((Shelf, "judge", _former_host),), first_seed=36),
    Planted("an expert is taken from whoever offers it", OnlyWhatAHostSigned,
            ((Placement, "_hand_over_offered", _any_hand_over),)),
    Planted("a keeper takes whatever seems newer", KeptIsGenuine, ((Shelf, "judge", _newest_wins),)),
    Planted("nobody keeps copies", CopiesAreClose, ((Placement, "_snapshot", _no_snapshot),)),
    Planted("an expert is copied once", CopiesAreClose, ((Placement, "_snapshots", _first_snapshot_only),)),
    Planted("the best is left out", FindsTheBest, ((BeamSearch, "proceed", _one_less),)),
    Planted("a search waits for every look", SearchIsQuick, ((BeamSearch, "proceed", _patient),), first_seed=5),
    Planted("a record counts for ever", FindsOnlyTheLiving,
            ((PrefixView, "_counts", _never_expires), (PrefixView, "learn", _learn_and_keep)), first_seed=86),
    Planted("an empty prefix stays empty", FindsWhatIsThere, ((PrefixView, "due", _never_due),)),
    Planted("only one expert under a prefix is stated", FindsWhatIsThere, ((Announcements, "announce", _only_once),), first_seed=10),
    Planted("a late look holds up the next ones", ExpertsSettle, ((LookUps, "begin", _late_blocks),)),
    Planted("looks asked for pile up", Bounded, ((LookUps, "hurry", _hurry_again),)),
    Planted("every former host is remembered", Bounded, ((evidence.Memory, "seen", _remember_all),)),
    Planted("a look does not wait for the one before", TrafficBounded, ((LookUps, "begin", _begin_all),)),
    Planted("every failed call has its host probed", TrafficBounded, ((Roster, "suspect", _suspect_again),)),
    Planted("who has refused is asked again at once", TrafficBounded, ((Placement, "_hand_over_all", _all_at_once),)),
    Planted("an honest keeper's offer is taken for forged", NobodyHonestBlamed, ((shell, "is_signed", _is_one_of_ours),)),
)  # fmt: skip
