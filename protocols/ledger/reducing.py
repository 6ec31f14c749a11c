"""A member's part in reducing one step, over all the ballots of one record.

Rules of this file:
  - The tally is frozen from the first Reduce until the next record, so every ballot reduces the same gradients.
  - A finished result stays usable under later ballots: a record is accepted and applied by the hash of its bytes.
"""

from __future__ import annotations

from protocols.ids import PeerID
from protocols.ledger.events import ReduceFailed, ReduceFinished, StartReduce
from protocols.ledger.messages import Reduce, Reduced
from protocols.ledger.tally import Tally
from protocols.ledger.view import Ballot, View


class Reducing:
    """What we were asked to reduce for the next record, and what came of it."""

    __slots__ = ("_asked", "_finished", "_hashes")

    def __init__(self) -> None:
        self._asked: Reduce | None = None
        self._finished: Reduced | None = None
        self._hashes: set[bytes] = set()

    def holds(self, gradient_hash: bytes) -> bool:
        """Tell whether the shell has this reduced gradient."""
        return gradient_hash in self._hashes

    def answer_to(self, ballot: Ballot) -> Reduced | None:
        """Return what we told, or would tell, the lead of this ballot."""
        done = self._finished
        return done if done is not None and done.ballot == ballot else None

    def is_asked(self, ballot: Ballot) -> bool:
        """Tell whether a reduction under this ballot is in progress."""
        return self._asked is not None and self._asked.ballot == ballot

    def start(
        self, message: Reduce, me: PeerID, stage: int, view: View, tally: Tally
    ) -> StartReduce | None:
        """Freeze and begin; None when the lead does not know what we have counted, and must ask again."""
        assigned = message.counted
        if message.step != tally.step or tally.busy or assigned.get(me, 0) != tally.counted:
            return None
        tally.frozen = True
        self._asked = message
        group = tuple([replica.peer for replica in view.replicas(stage)])
        contributors = tuple([peer for peer in group if assigned.get(peer)])
        return StartReduce(message.index, message.ballot, message.step, group, contributors)

    def finished(self, event: ReduceFinished) -> Reduced | None:
        """Take the result of the reduction that was asked for last; None for any other."""
        if not self._is_about(event.index, event.ballot):
            return None
        self._hashes.add(event.gradient_hash)
        self._finished = Reduced(
            event.index,
            event.ballot,
            event.gradient_hash,
            event.squared_norm,
            event.loss_sum,
            event.state_hash,
        )
        return self._finished

    def failed(self, event: ReduceFailed) -> bool:
        """Give up on the present reduction: the lead's next Reduce starts it again. Returns whether it was present."""
        if not self._is_about(event.index, event.ballot):
            return False
        self._asked = None
        return True

    def _is_about(self, index: int, ballot: Ballot) -> bool:
        asked = self._asked
        return asked is not None and (asked.index, asked.ballot) == (index, ballot)
