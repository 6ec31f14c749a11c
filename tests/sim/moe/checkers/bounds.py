"""What is remembered and sent is bounded, whatever others say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocols.experts.events import HandOverTo
from protocols.experts.lookups import AGAIN_S, LOOKS_AT_ONCE
from protocols.experts.messages import HOSTS_MAX, Probe
from protocols.experts.placement import HAND_OVERS_MAX
from protocols.experts.roster import HAND_OVER_AGAIN_S, PROBE_AGAIN_S
from protocols.experts.uid import ExpertUID, Prefix
from protocols.ids import PeerID
from tests.sim.engine.checker import on
from tests.sim.moe.checkers.checker import Checker, Life, life_of
from tests.sim.moe.notes import Asked, LookBegun

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer
    from tests.sim.moe.world import MoeWorld

_FAILURES_MAX: Final = 64
_LOOKS_MAX: Final = 4
"""Of one prefix within the pause between two: one that is due, and one for who asked while it was under way."""
_PROBES_S: Final = 10 * PROBE_AGAIN_S
_PROBES_MAX: Final = 2 * 10 + 9
"""In that time: two tries for each suspicion, one suspicion a second, and second tries of four that came late."""
_EPS_S: Final = 1e-3


class Bounded(Checker):
    """Memory follows the experts and the nodes of the run."""

    promise = "bounded"

    def looked(self) -> None:
        for peer in self.up():
            self._look(peer)

    def _look(self, peer: MoePeer) -> None:
        world, core = self.world, peer.core
        prefixes = sum(1 for grid in world.grids for uid in grid.uids() for _ in uid.prefixes)
        nodes = len(world.peers)
        self._check(peer, "prefixes known", len(peer.view._known), prefixes)
        self._check(peer, "looks under way", len(peer.looks._under_way), LOOKS_AT_ONCE)
        self._check(peer, "looks asked for", len(peer.looks._hurried), prefixes)
        self._check(peer, "snapshots kept", len(peer.kept), len(world.uids))
        self._check(peer, "snapshots offered", len(peer.shelf.offers), len(world.uids))
        self._check(peer, "own snapshots", len(peer.own), len(peer.experts))
        self._check(peer, "nodes down", len(core.roster.down), nodes)
        self._check(peer, "nodes probed", len(core.roster.probed_s), nodes)
        self._check(peer, "experts remembered", len(core._memory), len(world.uids))
        for memory in core._memory.values():
            self._check(peer, "hosts of one expert", len(memory.hosts), HOSTS_MAX)
            self._check(peer, "snapshots that failed", len(memory.failures), _FAILURES_MAX)
        if peer.trainer is not None:
            self._check(peer, "standings", len(peer.trainer.dispatch._standings), nodes)

    def _check(self, peer: MoePeer, what: str, size: int, limit: int) -> None:
        if size > limit:
            raise self.broken(f"{peer.name} has {size} {what}, more than {limit}")


class TrafficBounded(Checker):
    """Probes, hand-overs and looks come at a bounded pace, however many calls fail and whatever others say."""

    promise = "traffic bounded"

    def __init__(self, world: MoeWorld) -> None:
        super().__init__(world)
        self._asked: dict[tuple[Life, ExpertUID, PeerID], float] = {}
        self._probes: dict[tuple[Life, PeerID], list[float]] = {}
        self._looks: dict[tuple[Life, Prefix], list[float]] = {}

    @on(Asked)
    def asks(self, peer: MoePeer, note: Asked) -> None:
        if not isinstance(note.message, Probe):
            return
        past = self._probes.setdefault((life_of(peer), note.target), [])
        past.append(peer.now_s)
        del past[:-_PROBES_MAX]
        if len(past) == _PROBES_MAX and past[-1] - past[0] < _PROBES_S - _EPS_S:
            raise self.broken(f"{peer.name} probes {note.target.decode()} without end")

    @on(HandOverTo)
    def hands_over(self, peer: MoePeer, effect: HandOverTo) -> None:
        if len(peer.core._taking) > HAND_OVERS_MAX:
            raise self.broken(f"{peer.name} hands over {len(peer.core._taking)} experts at once")
        key = life_of(peer), effect.uid, effect.peer
        before_s = self._asked.get(key)
        self._asked[key] = peer.now_s
        if before_s is not None and peer.now_s - before_s < HAND_OVER_AGAIN_S - _EPS_S:
            raise self.broken(f"{peer.name} offers {effect.uid} to {effect.peer.decode()} again")

    @on(LookBegun)
    def looks(self, peer: MoePeer, note: LookBegun) -> None:
        past = self._looks.setdefault((life_of(peer), note.prefix), [])
        past.append(peer.now_s)
        del past[:-_LOOKS_MAX]
        if len(past) == _LOOKS_MAX and past[-1] - past[0] < AGAIN_S - _EPS_S:
            raise self.broken(f"{peer.name} looks up {note.prefix} again and again")
