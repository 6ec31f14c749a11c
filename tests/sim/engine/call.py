"""A question on its way, and its one answer: by whom it was asked, or by its deadline with nobody knowing whether it was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocols.ids import PeerID

if TYPE_CHECKING:
    from tests.sim.engine.peer import SimPeer
    from tests.sim.engine.world import World

_REFUSED_S: Final = 0.05
_PROBE_S: Final = 1.0


class Call:
    """One question of a peer to another. A mode derives from it, and says how it is served and what its end tells.

    A stopped peer takes no call; one that dies takes none and ends none of its own.
    """

    __slots__ = ("_deadline", "_life", "asker", "ended", "target_id", "world")

    def __init__(self, world: World[Any], asker: SimPeer, target_id: PeerID) -> None:
        self.world = world
        self.asker = asker
        self.target_id = target_id
        self.ended = False
        self._life = asker.life
        self._deadline = 0
        """Of the clock's plans, the one that fails this call."""

    # --- what a mode says ---

    def serve(self, target: Any) -> None:
        """The question is there: have it answered, now or later, by `answer`."""
        raise NotImplementedError

    def answered(self, what: Any) -> None:
        """The answer is here; `what` is what `answer` was given."""
        raise NotImplementedError

    def failed(self) -> None:
        """Nobody knows whether it was done."""
        raise NotImplementedError

    # --- the way there and back ---

    def begin(self, deadline_s: float) -> None:
        """Send it. An unreachable peer is noticed at once."""
        world, asker = self.world, self.asker
        world.network.cast(asker.peer_id, self.target_id, self.arrive)
        if not world.network.reaches(asker.peer_id, self.target_id):
            deadline_s = _REFUSED_S
            asker.later(_PROBE_S, asker.notice_down, self.target_id)
        self._deadline = world.clock.after(deadline_s, self._fail)

    def arrive(self) -> None:
        target = self.world.peers[self.target_id]
        if target.up and not target.stopped:
            self.serve(target)

    def wanted(self) -> bool:
        """Tell whether the asker still waits, as far as the other can know: a closed stream is noticed, a cut not."""
        return not self.ended or not self.world.network.reaches(self.asker.peer_id, self.target_id)

    def answer(self, what: Any) -> None:
        if not self.ended:
            self.world.network.cast(self.target_id, self.asker.peer_id, self.end, what)

    def cancel(self) -> None:
        """The asker does not wait any more."""
        if not self.ended:
            self.ended = True
            self.world.clock.cancel(self._deadline)

    def end(self, what: Any) -> None:
        """The answer arrives."""
        if self._end(self.answered, what):
            self.world.clock.cancel(self._deadline)

    def _fail(self) -> None:
        self._end(self.failed)

    def _end(self, tell: Callable[..., None], *args: Any) -> bool:
        asker = self.asker
        if self.ended or not asker.up or asker.life != self._life:
            return False
        self.ended = True
        asker.report(tell, *args)
        return True
