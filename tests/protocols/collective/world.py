"""Cores of a collective run in virtual time: groups form at once, and there are no numbers, only whose steps are in them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from protocols.collective.collective import Collective
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
from protocols.collective.rounds import Fragment
from protocols.collective.settings import CollectiveSpec
from protocols.core import Blame, ContactsFound, DrainWanted, Received, Send, Tick
from protocols.ids import PeerID

GATHER_S = 3.0
"""A group waits so long for members after the first one."""
LINK_S = 0.01


def peer(number: int) -> PeerID:
    return PeerID(b"peer" + number.to_bytes(4, "big"))


@dataclass(slots=True)
class Node:
    """A core and what its shell would keep."""

    core: Collective
    step_s: float
    exchange_s: float
    work: list[Counter[PeerID]]
    """In the outer state, by fragment: local steps of whom."""
    means: dict[int, Counter[PeerID]] = field(default_factory=dict)
    fetched: dict[int, Counter[PeerID]] = field(default_factory=dict)
    trained: int = 0
    ticks: set[float] = field(default_factory=set)
    alive: bool = True
    left: bool = False
    not_finite: bool = False
    """Its next steps are not."""
    blamed: list[PeerID] = field(default_factory=list)
    counted: int = 0
    """States taken over that had this node's steps in them."""
    newest: dict[int, tuple[PeerID, ...]] = field(default_factory=dict)
    """By fragment: who was in its newest round."""
    begun: list[BeginRound] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    members: dict[PeerID, int] = field(default_factory=dict)
    cancelled: set[PeerID] = field(default_factory=set)
    closed: bool = False


class World:
    """Nodes, a directory that names all of them, and an averager that never errs unless told to."""

    def __init__(self, spec: CollectiveSpec, *, steps: int, seed: int = 0) -> None:
        self.spec = spec
        self.schedule = Schedule(spec.fragments, spec.local_steps, steps)
        self.now_s = 0.0
        self.nodes: dict[PeerID, Node] = {}
        self.groups: dict[tuple[int, int, bytes], Group] = {}
        self.missing: Callable[[PeerID, int, int], bool] = lambda who, fragment, version: False
        """Who misses a round that others finish."""
        self.misses_the_end = False
        """And whether their steps count in it all the same."""
        self.apart: Callable[[PeerID, PeerID], bool] = lambda one, other: False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._rng = random.Random(seed)

    def add(
        self, number: int, *, step_s: float = 1.0, exchange_s: float = 0.5, founds: bool = False,
        step: int = 0, fragments: list[Fragment] | None = None, work: list[Counter[PeerID]] | None = None,
    ) -> Node:  # fmt: skip
        who = peer(number)
        core = Collective(
            who, self.spec, self.schedule,
            rng=random.Random(self._rng.random()), founds=founds, kept=fragments is not None,
            step=step, fragments=fragments,
        )  # fmt: skip
        node = Node(core, step_s, exchange_s, work or [Counter() for _ in core.fragments])
        self.nodes[who] = node
        self._perform(who, core.start(self.now_s))
        self.tell_contacts()
        return node

    def tell_contacts(self) -> None:
        """The directory names everybody who is there, as far as the network reaches."""
        live = [who for who, node in self.nodes.items() if node.alive and not node.left]
        for who in live:
            reached = tuple(other for other in live if not self.apart(who, other))
            self.feed(who, ContactsFound(self.now_s, reached))

    def kill(self, number: int) -> None:
        self.nodes[peer(number)].alive = False
        self.tell_contacts()

    def drain(self, number: int) -> None:
        self.feed(peer(number), DrainWanted(self.now_s))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, do = heapq.heappop(self._events)
            do()
        self.now_s = until_s

    def feed(self, who: PeerID, event: CollectiveEvent) -> None:
        node = self.nodes[who]
        if node.alive and not node.left:
            self._perform(who, node.core.handle(event))

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + seconds, next(self._order), do))

    def _soon(self, seconds: float, who: PeerID, event: Callable[[], CollectiveEvent]) -> None:
        self.later(seconds, lambda: self.feed(who, event()))

    def _perform(self, who: PeerID, effects: list[CollectiveEffect]) -> None:
        for effect in effects:
            self._do(who, self.nodes[who], effect)
        node = self.nodes[who]
        wake_s = node.core.wake_at_s
        if wake_s < float("inf") and wake_s not in node.ticks:
            node.ticks.add(wake_s)
            self._soon(max(0.0, wake_s - self.now_s), who, lambda: Tick(self.now_s))

    def _do(self, who: PeerID, node: Node, effect: CollectiveEffect) -> None:
        match effect:
            case TrainStep():
                self._soon(node.step_s, who, lambda: self._trained(node))
            case BeginRound():
                node.begun.append(effect)
                self._soon(0.0, who, lambda: RoundBegun(self.now_s, effect.fragment, True))
                self.later(0.001, lambda: self._gather(who, effect))
            case ApplyMean(index):
                node.newest[index] = tuple(node.means[index])
                node.work[index] += node.means.pop(index)
                self._soon(0.0, who, lambda: MeanApplied(self.now_s, index, True))
            case RollBack():
                self._soon(0.0, who, lambda: RolledBack(self.now_s))
            case AdoptState(index, counted):
                node.work[index] = node.fetched.pop(index)
                node.counted += counted
                self._soon(0.0, who, lambda: StateAdopted(self.now_s, index, True))
            case AskStanding(other):
                self._soon(2 * LINK_S, who, lambda: self._standing(who, other))
            case FetchState(other, index):
                self._soon(0.5, who, lambda: self._fetch(who, other, index))
            case Send(other, message):
                if not self.apart(who, other):
                    self._soon(LINK_S, other, lambda: Received(self.now_s, who, message))
            case Blame(other, _):
                node.blamed.append(other)
            case CancelRound(index, version):
                key = index, version, node.core.fragments[index].line
                group = self.groups.setdefault(key, Group())
                if not group.closed:
                    group.members.pop(who, None)
                    group.cancelled.add(who)
                closed = group.closed
                self._soon(0.0, who, lambda: RoundMissed(self.now_s, index, version, closed))
            case DropMean(index):
                node.means.pop(index, None)
            case Left():
                node.left = True
                self.tell_contacts()
            case LookForContacts():
                self.later(LINK_S, self.tell_contacts)

    def _trained(self, node: Node) -> CollectiveEvent:
        node.trained += not node.not_finite
        return Trained(self.now_s, not node.not_finite)

    def _standing(self, who: PeerID, other: PeerID) -> CollectiveEvent:
        if not self.nodes[other].alive or self.apart(who, other):
            return StandingFailed(self.now_s, other)
        return StandingAnswered(self.now_s, other, self.nodes[other].core.standing)

    def _fetch(self, who: PeerID, other: PeerID, index: int) -> CollectiveEvent:
        donor = self.nodes[other]
        if not donor.alive or self.apart(who, other):
            return StateFailed(self.now_s, index, other)
        self.nodes[who].fetched[index] = Counter(donor.work[index])
        self.nodes[who].newest[index] = donor.newest.get(index, ())
        fragment = donor.core.fragments[index]
        has_ours = who in donor.newest.get(index, ())
        return StateFetched(self.now_s, index, other, fragment.version, fragment.lines, has_ours)

    # --- groups ---

    def _gather(self, who: PeerID, wanted: BeginRound) -> None:
        index, version = wanted.fragment, wanted.version
        if wanted.alone:
            self.nodes[who].means[index] = Counter({who: wanted.weight})
            self.feed(who, MeanArrived(self.now_s, index, version, (who,)))
            return
        key = (index, version, wanted.line)
        group = self.groups.setdefault(key, Group())
        if who in group.cancelled:
            return
        if group.closed:
            self.feed(who, RoundMissed(self.now_s, index, version))
            return
        group.members[who] = wanted.weight
        if len(group.members) == 1:
            self.later(GATHER_S, lambda: self._close(group, index, version))
        if len(group.members) == sum(n.alive and not n.left for n in self.nodes.values()):
            self._close(group, index, version)

    def _close(self, group: Group, index: int, version: int) -> None:
        if group.closed:
            return
        group.closed = True
        sides: dict[PeerID, dict[PeerID, int]] = {}
        counts = self.misses_the_end
        for who, weight in group.members.items():
            if not self.nodes[who].alive:
                continue
            missing = self.missing(who, index, version)
            if missing:
                self._soon(1.0, who, lambda: RoundMissed(self.now_s, index, version, counts))
            if counts or not missing:
                first = next((w for w in sides if not self.apart(who, w)), who)
                sides.setdefault(first, {})[who] = weight
        for side in sides.values():
            self._finish(side, index, version)

    def _finish(self, side: dict[PeerID, int], index: int, version: int) -> None:
        members = tuple(sorted(side))
        for who in members:
            if len(members) == 1:
                self._soon(0.1, who, lambda: RoundMissed(self.now_s, index, version))
                continue
            node = self.nodes[who]
            if self.missing(who, index, version):
                continue

            def arrived(node: Node = node) -> CollectiveEvent:
                node.means[index] = Counter(side)
                return MeanArrived(self.now_s, index, version, members)

            self._soon(node.exchange_s, who, arrived)
