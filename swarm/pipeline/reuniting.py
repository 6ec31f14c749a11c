"""The shell of `protocols.ledger.reunion`: looks for other histories of the run while this node is a member of one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from protocols.ids import PeerID
from protocols.ledger.epoch import history_of, shown
from protocols.ledger.events import LedgerSettings
from protocols.ledger.member import Ledger
from protocols.ledger.restart_messages import Back, Running, encode_restart
from protocols.ledger.reunion import Ask, Call, GiveWay, Reunion, ReunionEffect
from protocols.ledger.view import Record
from swarm.calls import Caller

log = logging.getLogger(__name__)

RESTART_SERVICE: Final = "restart"
_MET_MAX: Final = 64
_LOOK_S: Final = 0.5


class HistoryEndsError(Exception):
    """Another history of this run stays: this node gives up its own, and joins. What raises it is begun again for that."""

    def __init__(self, ours: Record, theirs: Record) -> None:
        super().__init__(
            f"another history of this run was met, and it stays: epoch {shown(theirs.epoch)} at step {theirs.step}. The one of"
            f" this node, epoch {shown(ours.epoch)} at step {ours.step}, ends here, and this node joins the other as a newcomer."
            " Two operators have said --new-epoch, or one while a majority still ran. The checkpoints of what ends are"
            " kept aside"
        )
        self.ours = ours
        self.theirs = theirs


class Reuniting:
    """One member's part in it.

    Args:
      ledger: the present one.
    """

    def __init__(
        self,
        me: PeerID,
        settings: LedgerSettings,
        caller: Caller,
        ledger: Callable[[], Ledger],
    ) -> None:
        self._caller = caller
        self._ledger = ledger
        self._core = Reunion(me, settings.silence_s, settings.stages, now_s=trio.current_time())
        self.ended: HistoryEndsError | None = None
        """Why this peer ends, when it does."""
        self._changed = trio.Event()
        self._met: set[int] = set()
        """Other histories that were told of."""

    async def run(self) -> None:
        """Look for others until cancelled. Raises HistoryEndsError when the run that we are in is to end for us."""
        while self.ended is None:
            record = self._record()
            if record is not None:
                now_s, majority = trio.current_time(), not self._ledger().lacks_majority
                self._do(self._core.tick(now_s, record, majority=majority), record)
            with trio.move_on_at(max(self._core.wake_at_s, trio.current_time() + _LOOK_S)):
                await self._changed.wait()
        raise self.ended

    def told(self, peer: PeerID, theirs: Record) -> None:
        """A peer says that it is in a run with this newest record."""
        ledger, ours = self._ledger(), self._record()
        if ours is None:
            return
        effects = self._core.told(
            trio.current_time(), ours, peer, theirs, majority=not ledger.lacks_majority
        )
        if Call(peer) in effects and any(peer in fork.absent for fork in ours.forks):
            self._say_that_it_stays(ours, theirs)
        self._do(effects, ours)

    def _say_that_it_stays(self, ours: Record, theirs: Record) -> None:
        """Once for each history that is met."""
        history = history_of(theirs.epoch)
        if history in self._met or len(self._met) >= _MET_MAX:
            return
        self._met.add(history)
        log.warning(
            "another history of this run was met, and the one here stays: epoch %s at step %d here, epoch %s at step %d there."
            " Its nodes join this one as newcomers",
            shown(ours.epoch), ours.step, shown(theirs.epoch), theirs.step,
        )  # fmt: skip

    def _record(self) -> Record | None:
        ledger = self._ledger()
        return ledger.record if ledger.member is not None else None

    def _do(self, effects: list[ReunionEffect], record: Record) -> None:
        for effect in effects:
            match effect:
                case Call(peer):
                    self._tell(peer, record)
                case Ask(peer):
                    back = Back(self._ledger().incarnation, record, (), may_vote=False)
                    self._caller.cast_nowait(peer, RESTART_SERVICE, encode_restart(back))
                case GiveWay(theirs):
                    self.ended = HistoryEndsError(record, theirs)
                    self._changed.set()

    def _tell(self, peer: PeerID, record: Record) -> None:
        self._caller.cast_nowait(peer, RESTART_SERVICE, encode_restart(Running(record)))
