"""One node's searches and batches: the real search and dispatch cores, and random scores in place of a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from protocols.experts.dispatch import ELSEWHERE, Dispatch
from protocols.experts.lookups import PATIENCE_S
from protocols.experts.search import BeamSearch, Found
from protocols.experts.uid import ExpertUID, Grid
from protocols.experts.view import Claim
from protocols.ids import PeerID
from tests.sim.moe.asking import ExpertCall
from tests.sim.moe.notes import Faulted, SearchEnded

if TYPE_CHECKING:
    from tests.sim.moe.peer import MoePeer

_K: Final = 3
_BEGIN_S: Final = 15.0
_EPS_S: Final = 1e-3


class Search:
    """One beam search, from its beginning to its result."""

    def __init__(
        self,
        peer: MoePeer,
        grid: Grid,
        scores: Sequence[Sequence[float]],
        done: Callable[[Sequence[ExpertUID]], None],
    ) -> None:
        self._peer, self._grid, self._scores, self._done = peer, grid, scores, done
        self._began_s = peer.now_s
        self._core = BeamSearch(grid, scores, beam=peer.world.beam, until_s=peer.now_s + PATIENCE_S)
        self._over = False
        peer.searches.append(self)
        peer.later(PATIENCE_S + _EPS_S + PATIENCE_S * 0.03, self.proceed)  # clocks differ by 2 %

    def proceed(self) -> None:
        """Something was learned, or patience is over."""
        peer = self._peer
        if self._over:
            return
        step = self._core.proceed(peer.view, peer.now_s)
        if not isinstance(step, Found):
            peer.looks.hurry(step.prefixes, peer.now_s)
            peer.look()
            return
        self._over = True
        peer.searches.remove(self)
        in_time = peer.now_s < self._core.until_s
        seconds = peer.now_s - self._began_s
        peer.note(
            SearchEnded(self._grid, self._scores, peer.world.beam, step.uids, seconds, in_time)
        )  # fmt: skip
        self._done(step.uids)


class Trainer:
    """Batch after batch: search, forward to k experts at once, backward to those that answered."""

    def __init__(self, peer: MoePeer) -> None:
        self._peer = peer
        self._rng = peer.rng
        scale = peer.world.scale
        self.dispatch = Dispatch(floor_s=1.0 * scale, ceiling_s=6.0 * scale)
        self._left = 0
        self._begin_by_s = peer.now_s + peer.world.scaled(_BEGIN_S)
        peer.later(peer.world.batch_s * self._rng.random(), self._wait_for_experts)

    def _wait_for_experts(self) -> None:
        """A full grid is better than the first few experts, but not for ever."""
        peer = self._peer
        alive = sum(len(peer.view.alive(grid, peer.now_s)) for grid in peer.world.grids)
        if alive < len(peer.world.uids) and peer.now_s < self._begin_by_s:
            peer.later(peer.world.batch_s, self._wait_for_experts)
        else:
            self.batch()

    def batch(self) -> None:
        peer, rng = self._peer, self._rng
        if peer.draining:
            return
        grid = rng.choice(peer.world.grids)
        scores = [[rng.gauss(0, 1) for _ in range(size)] for size in grid.sizes]
        Search(peer, grid, scores, self._found).proceed()

    def _found(self, uids: Sequence[ExpertUID]) -> None:
        chosen = [(uid, hosts[0]) for uid in uids if (hosts := self._hosts(uid))][:_K]
        self._left = len(chosen)
        for uid, claim in chosen:
            self._forward(uid, claim)
        if not chosen:
            self._ended()

    def _hosts(self, uid: ExpertUID) -> Sequence[Claim]:
        now_s = self._peer.now_s
        usable = self.dispatch.usable(self._peer.view.answering(uid, now_s), now_s)
        return self.dispatch.spread(usable, "forward", self._rng, me=self._peer.peer_id)

    def _forward(self, uid: ExpertUID, claim: Claim) -> None:
        peer, began_s = self._peer, self._peer.now_s
        host = claim.peer

        def done(what: Any) -> None:
            if self._usable(uid, host, "forward", what, began_s):
                peer.later(peer.world.batch_s * self._rng.random(), backward, *what)
            else:
                self._one_ended()

        def backward(epoch: int, version: int) -> None:
            if peer.view.overtaken(uid, epoch, peer.now_s):
                self._one_ended()
                return
            began_s = peer.now_s
            ExpertCall(peer, host, uid, epoch, version, lambda what: ended(what, began_s)).begin(
                self.dispatch.deadline_s(host, "backward")
            )

        def ended(what: Any, began_s: float) -> None:
            self._usable(uid, host, "backward", what, began_s)
            self._one_ended()

        self.dispatch.hedge_after_s(self._hosts(uid), "forward")
        deadline_s = self.dispatch.deadline_s(host, "forward")
        ExpertCall(peer, host, uid, claim.epoch, None, done).begin(deadline_s)

    def _usable(self, uid: ExpertUID, host: PeerID, kind: str, what: Any, began_s: float) -> bool:
        peer = self._peer
        if isinstance(what, tuple):
            self.dispatch.answered(host, kind, peer.now_s - began_s)
            return True
        if host == peer.peer_id:
            return False
        if what == "wrong":
            peer.note(Faulted(host, "an answer that is not finite"))
            why = "wrong"
        elif what is None:
            why = "gone"
        else:
            why = "elsewhere" if what in ELSEWHERE else "busy"
        then = self.dispatch.absent(host, why, peer.now_s)  # type: ignore[arg-type]
        if then.suspect:
            peer.suspect(host)
        if then.refresh:
            peer.looks.hurry(uid.prefixes[-1:], peer.now_s)
            peer.look()
        return False

    def _one_ended(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._ended()

    def _ended(self) -> None:
        peer = self._peer
        peer.later(peer.world.batch_s * (0.5 + self._rng.random()), self.batch)
