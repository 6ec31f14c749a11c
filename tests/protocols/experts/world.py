"""Several placement cores in virtual time: a directory that lags, nodes that die, pause, return and drain, and what they hold.

Steps are counted: every host steps its experts all the time, and a snapshot carries how many steps are behind it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from protocols.core import DrainWanted, Tick
from protocols.experts.events import (
    Adopt,
    Announce,
    AnswerHandOver,
    ClaimsSeen,
    Create,
    Doubt,
    Drop,
    Effect,
    Event,
    FindSnapshots,
    HandedOver,
    HandOverOffered,
    HandOverTo,
    Hosted,
    HostFailed,
    Left,
    LookAgain,
    NodesSeen,
    OffersFound,
    Probed,
    ProbePeer,
    SnapshotKept,
    Suspected,
    TakeSnapshot,
)
from protocols.experts.messages import SnapshotOffer
from protocols.experts.placement import Placement
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

LAG_S = 1.0
"""Until others see what a node announces."""
LOOK_S = 2.0
LIFETIME_S = 20.0
STEP_S = 0.25


@dataclass(slots=True)
class Node:
    name: PeerID
    core: Placement
    up: bool = True
    paused: bool = False
    left: bool = False
    experts: dict[ExpertUID, tuple[int, int]] = field(default_factory=dict)
    """(epoch, steps)"""
    frozen: set[ExpertUID] = field(default_factory=set)
    kept: dict[ExpertUID, SnapshotOffer] = field(default_factory=dict)
    doubted: dict[PeerID, float] = field(default_factory=dict)
    handing: dict[ExpertUID, tuple[PeerID, int]] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        return self.up and not self.paused and not self.left


class World:
    """Nodes, what they announced, and a clock."""

    def __init__(
        self,
        nodes: int,
        uids: list[ExpertUID],
        *,
        seed: int,
        room: int = 99,
        keepers: int = 1,
        start: int = 0,
    ) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.uids = uids
        self._room, self._keepers, self._start = room, keepers, start or nodes
        self.nodes: dict[PeerID, Node] = {}
        self.stated: list[tuple[float, PeerID, dict[ExpertUID, int]]] = []
        """(when, who, experts with epochs), in order."""
        self.later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.lost: list[ExpertUID] = []
        self.stepped: dict[tuple[ExpertUID, int], set[PeerID]] = {}
        """Who has stepped an expert under an epoch."""
        for index in range(nodes):
            self.join(f"n{index}")

    def join(self, name: str) -> Node:
        peer = PeerID(name.encode())
        core = Placement(
            peer,
            tuple(self.uids),
            self._room,
            self._keepers,
            2.0,
            random.Random(name),
            nodes_to_start=self._start,
        )
        node = self.nodes[peer] = Node(peer, core)
        core.start(self.now_s)
        self.stated.append((self.now_s, peer, {}))
        return node

    # --- time ---

    def run(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += STEP_S
            for at_s, count, act in sorted(self.later, key=lambda item: item[:2]):
                if at_s <= self.now_s:
                    self.later = [item for item in self.later if item[1] != count]
                    act()
            for node in list(self.nodes.values()):
                if node.live:
                    self._turn(node)

    def _turn(self, node: Node) -> None:
        for uid, (epoch, steps) in node.experts.items():
            if uid not in node.frozen and self.rng.random() < 0.5:
                node.experts[uid] = epoch, steps + 1
                self.stepped.setdefault((uid, epoch), set()).add(node.name)
        if int(self.now_s / STEP_S) % int(LOOK_S / STEP_S) == sum(node.name) % int(LOOK_S / STEP_S):
            self._look(node)
        if node.core.wake_at_s <= self.now_s:
            self.feed(node, Tick(self.now_s))

    def _look(self, node: Node) -> None:
        newest: dict[PeerID, tuple[float, dict[ExpertUID, int]]] = {}
        for at_s, who, experts in self.stated:
            if at_s + LAG_S <= self.now_s:
                newest[who] = at_s, experts
        claims: dict[ExpertUID, list[Claim]] = {}
        rooms = {}
        for who, (at_s, experts) in newest.items():
            author = self.nodes[who]
            renewed_s = at_s if not author.live else self.now_s
            if who == node.name or renewed_s + LIFETIME_S < self.now_s or author.left:
                continue
            rooms[who] = self._room
            if node.doubted.get(who, -1.0) >= renewed_s:
                continue
            for uid, epoch in experts.items():
                claims.setdefault(uid, []).append(Claim(epoch, who))
                if not author.live and node.name in {n.name for n in self.nodes.values()}:
                    self.feed(node, Suspected(self.now_s, who))  # a call to it failed
        self.feed(node, NodesSeen(self.now_s, rooms))
        self.feed(
            node, ClaimsSeen(self.now_s, {uid: sorted(found) for uid, found in claims.items()})
        )

    def feed(self, node: Node, event: Event) -> None:
        for effect in node.core.handle(event):
            self._perform(node, effect)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._count += 1
        self.later.append((self.now_s + seconds, self._count, act))

    def _after_if_live(self, node: Node, make: Callable[[], Event]) -> None:
        self.after(self.rng.uniform(0.1, 1.0), lambda: self.feed(node, make()) if node.up else None)

    # --- what cores want ---

    def _perform(self, node: Node, effect: Effect) -> None:
        match effect:
            case Create(uid, epoch, lost):
                if lost:
                    self.lost.append(uid)
                self._host_later(node, uid, epoch, 0)
            case FindSnapshots(uid, nodes):
                asked = [self.nodes[peer] for peer in nodes if self.nodes[peer].live] + [node]
                offers = tuple((n.name, n.kept[uid]) for n in asked if uid in n.kept)
                self._after_if_live(node, lambda: OffersFound(self.now_s, uid, offers))
            case Adopt(uid, epoch, offer, donors):
                donor = next((self.nodes[d] for d in donors if self.nodes[d].live), None)
                if donor is None:
                    self._after_if_live(node, lambda: HostFailed(self.now_s, uid))
                else:
                    self._host_later(node, uid, epoch, offer.version)
            case AnswerHandOver(uid):
                self._answer_hand_over(node, uid, taken=False)
            case Drop(uid):
                node.experts.pop(uid, None)
                node.frozen.discard(uid)
            case TakeSnapshot(uid, epoch, keepers):
                if uid in node.experts:
                    offer = self._offer(node, uid)
                    live = [self.nodes[keeper] for keeper in keepers if self.nodes[keeper].live]
                    for keeper in live:
                        keeper.kept[uid] = offer
                    self.feed(node, SnapshotKept(self.now_s, uid, len(live)))
            case LookAgain():
                self._look(node)
            case HandOverTo(uid, epoch, peer):
                self._hand_over(node, uid, epoch, self.nodes[peer])
            case ProbePeer(peer):
                alive = self.nodes[peer].live
                self._after_if_live(node, lambda: Probed(self.now_s, peer, alive))
            case Doubt(peer):
                stated = [at_s for at_s, who, _ in self.stated if who == peer]
                node.doubted[peer] = max(stated)
            case Announce(experts):
                self.stated.append((self.now_s, node.name, dict(experts)))
            case Left():
                node.left = True
            case _:
                assert_never(effect)

    def _offer(self, node: Node, uid: ExpertUID) -> SnapshotOffer:
        epoch, steps = node.experts[uid]
        return SnapshotOffer(str(uid), epoch, steps, bytes(32), node.name, bytes(64))

    def _host_later(self, node: Node, uid: ExpertUID, epoch: int, steps: int) -> None:
        def host() -> None:
            if not node.up:
                return
            node.experts[uid] = epoch, steps
            self.feed(node, Hosted(self.now_s, uid, epoch))
            self._answer_hand_over(node, uid, taken=uid in node.experts)

        self.after(self.rng.uniform(0.1, 1.0), host)

    def _hand_over(self, node: Node, uid: ExpertUID, epoch: int, to: Node) -> None:
        node.frozen.add(uid)
        offer = self._offer(node, uid)
        if not to.live:
            self._after_if_live(node, lambda: HandedOver(self.now_s, uid, epoch, taken=False))
            return
        to.handing[uid] = node.name, epoch
        self.feed(to, HandOverOffered(self.now_s, node.name, offer, uid))

    def _answer_hand_over(self, node: Node, uid: ExpertUID, *, taken: bool) -> None:
        handing = node.handing.pop(uid, None)
        if handing is None:
            return
        origin, epoch = handing
        self.nodes[origin].frozen.discard(uid)
        if self.nodes[origin].up:
            self.feed(self.nodes[origin], HandedOver(self.now_s, uid, epoch, taken))

    # --- faults, and what is seen from outside ---

    def kill(self, name: str) -> Node:
        node = self.nodes[PeerID(name.encode())]
        node.up = False
        return node

    def drain(self, name: str) -> Node:
        node = self.nodes[PeerID(name.encode())]
        self.feed(node, DrainWanted(self.now_s))
        return node

    def hosts(self) -> dict[ExpertUID, list[Node]]:
        found: dict[ExpertUID, list[Node]] = {uid: [] for uid in self.uids}
        for node in self.nodes.values():
            if node.live:
                for uid in node.experts:
                    found[uid].append(node)
        return found
