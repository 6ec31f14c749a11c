"""What searches find, and how long they take."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from protocols.experts.lookups import PATIENCE_S
from protocols.experts.uid import ExpertUID, Place, Prefix
from tests.sim.engine.checker import on
from tests.sim.moe.checkers.checker import Checker, Life, TenureChecker, life_of
from tests.sim.moe.notes import HostingEnded, SearchEnded

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_SLACK_S: Final = 0.2
_STOPPED_S: Final = 9.0
_SEEN_S: Final = 25.0
"""After this every look that was under way has ended, and a new one has been made; negative entries have expired."""


class FindsTheBest(Checker):
    """A search that got all its answers finds what a beam search over all that its view knows finds, the best first.

    Where the beam holds all prefixes these are the experts with the highest scores of all. A search that did without some
    answers finds experts that its view knows.
    """

    promise = "finds the best"

    @on(SearchEnded)
    def found(self, peer: MoePeer, note: SearchEnded) -> None:
        alive = self._alive(peer, note)
        if not note.in_time:
            if not set(note.found) <= set(alive):
                raise self.broken(f"{peer.name} found experts that its view does not know")
            return
        best = self._best(peer, note)
        if best != list(note.found):
            raise self.broken(
                f"{peer.name} found {[str(u) for u in note.found]}; the best alive are {[str(u) for u in best]}"
            )

    def _best(self, peer: MoePeer, note: SearchEnded) -> list[ExpertUID]:
        """Search all that the view knows: of each length keep the best prefixes under which something is alive."""
        layer, sizes = note.grid.layer, note.grid.sizes
        kept: list[Place] = [()]
        if len(sizes) > 1:
            first = [(u,) for u in range(sizes[0])]
            kept = _top(note, [place for place in first if self._children(peer, note, place)])
        for _ in sizes[1:] or sizes:
            below = [(*place, u) for place in kept for u in self._children(peer, note, place)]
            kept = _top(note, below)
        return [ExpertUID(layer, place) for place in kept]

    def _children(self, peer: MoePeer, note: SearchEnded, place: Place) -> list[int]:
        layer, size = note.grid.layer, note.grid.sizes[len(place)]
        if len(place) < len(note.grid.sizes) - 1:
            prefix = Prefix(layer, place)
            return [u for u in range(size) if self._listed(peer, prefix, u)]
        uids = [ExpertUID(layer, (*place, u)) for u in range(size)]
        return [uid.place[-1] for uid in uids if peer.view.answering(uid, peer.now_s)]

    def _alive(self, peer: MoePeer, note: SearchEnded) -> list[ExpertUID]:
        """Return every expert of a layer that somebody answers for, as the view has it, and, prefix by prefix, a way to."""
        return [
            uid
            for uid in note.grid.uids()
            if peer.view.answering(uid, peer.now_s)
            and all(
                self._listed(peer, prefix, uid.place[len(prefix.place)])
                for prefix in uid.prefixes[:-1]
            )
        ]

    def _listed(self, peer: MoePeer, prefix: Prefix, coordinate: int) -> bool:
        view, depth = peer.view, len(prefix.place)
        own = {(of.layer, of.place[: depth + 1]) for of in peer.core.hosting}
        if (prefix.layer, (*prefix.place, coordinate)) in own:
            return True
        known = view._known.get(prefix)
        return known is not None and any(
            line.coordinate == coordinate
            for peer_id, of in known.statements.items()
            if of.until_s > peer.now_s
            and peer_id != peer.peer_id
            and of.issued_s > view._doubted.get(peer_id, -1.0)
            for line in of.stated
        )


class SearchIsQuick(Checker):
    """No search waits longer than its patience for anybody."""

    promise = "a search is quick"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._stopped_s: dict[str, float] = {}

    @on(SearchEnded)
    def found(self, peer: MoePeer, note: SearchEnded) -> None:
        if note.seconds > PATIENCE_S + _SLACK_S and not self._was_stopped(peer):
            raise self.broken(f"{peer.name} searched for {note.seconds:.2f} s")

    def looked(self) -> None:
        for peer in self.up():
            for search in peer.searches:
                waited_s = peer.now_s - search._began_s
                if waited_s > 2 * PATIENCE_S and not self._was_stopped(peer):
                    raise self.broken(f"{peer.name} has searched for {waited_s:.1f} s")

    def _was_stopped(self, peer: MoePeer) -> bool:
        return bool(self.world.faults.silent_peers) and self.world.healed_for_s < _STOPPED_S


class FindsOnlyTheLiving(TenureChecker):
    """What is found is alive, or was until lately: as long as the directory names who went silently."""

    promise = "finds only the living"

    @on(SearchEnded)
    def found(self, peer: MoePeer, note: SearchEnded) -> None:
        world = self.world
        since_s = world.clock.now_s - 1.1 * world.records.lifetime_s - 10.0 - world.scaled(30.0)
        for uid in note.found:
            tenures = self.tenures.get(uid, {}).values()
            lately = any(t.ended_s is None or t.ended_s >= since_s for t in tenures)
            hosts = peer.view.hosts(uid, peer.now_s)
            if not lately and not any(claim.peer in world.liars for claim in hosts):
                raise self.broken(f"{peer.name} found {uid}, which nobody has had for long")


class FindsWhatIsThere(TenureChecker):
    """Once faults have ended, an expert that has been hosted for some time is found by who searches with its score on top.

    Not one below a prefix that others push out of the beam: a beam search keeps the best prefixes, whatever is below them.
    """

    promise = "finds what is there"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._stated_s: dict[tuple[ExpertUID, int], float] = {}
        self._up_s: dict[Life, float] = {}

    def looked(self) -> None:
        now_s = self.world.clock.now_s
        for host in self.up():
            for uid, expert in host.experts.items():
                if not host.draining:
                    self._stated_s.setdefault((uid, expert.epoch), now_s)

    @on(HostingEnded)
    def ends(self, peer: MoePeer, note: HostingEnded) -> None:
        self._stated_s.pop((note.uid, note.epoch), None)

    @on(SearchEnded)
    def found(self, peer: MoePeer, note: SearchEnded) -> None:
        world, now_s = self.world, self.world.clock.now_s
        if world.healed_for_s < 2 * _SEEN_S or not note.in_time or peer.draining:
            return
        if peer.trainer is None or now_s - self._up_since(peer) < _SEEN_S:
            return
        worst = min((_score(note, uid) for uid in note.found), default=float("-inf"))
        for (uid, _), since_s in self._stated_s.items():
            if uid not in note.grid or uid in note.found or now_s - since_s < _SEEN_S:
                continue
            if _is_pushed_out(note, uid):
                continue
            if len(note.found) < note.beam or _score(note, uid) > worst:
                raise self.broken(f"{peer.name} missed {uid}, hosted for {now_s - since_s:.0f} s")

    def _up_since(self, peer: MoePeer) -> float:
        return self._up_s.setdefault(life_of(peer), self.world.clock.now_s)


def _is_pushed_out(note: SearchEnded, uid: ExpertUID) -> bool:
    """Tell whether a prefix of it may not be among the `beam` best: so many others have higher scores."""
    for prefix in uid.prefixes:
        own = _score_of(note, prefix.place)
        places = itertools.product(*map(range, note.grid.sizes[: len(prefix.place)]))
        if sum(_score_of(note, place) > own for place in places) >= note.beam:
            return True
    return False


def _top(note: SearchEnded, places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda place: -_score_of(note, place))[: note.beam]


def _score(note: SearchEnded, uid: ExpertUID) -> float:
    return _score_of(note, uid.place)


def _score_of(note: SearchEnded, place: Place) -> float:
    return sum(note.scores[index][u] for index, u in enumerate(place))
