"""What a checker may watch. Every method does nothing by default; a checker overrides what concerns its promise."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from protocols.ids import PeerID
from protocols.ledger.messages import Accept, Accepted, Lease, Promise
from protocols.ledger.tally import Attempt
from protocols.ledger.trainer import AskClaim, AskSettle, AskStage, TrainerEvent
from protocols.ledger.view import Record

if TYPE_CHECKING:
    from tests.sim.peer import SimPeer
    from tests.sim.world import World


class ViolationError(AssertionError):
    """A promise was broken; the message says which and how."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise
        self.text = text

    def __reduce__(self) -> tuple[type[ViolationError], tuple[str, str]]:
        return type(self), (self.promise, self.text)


class Checker:
    """Watches one promise in one world."""

    promise: ClassVar[str] = ""

    def __init__(self, world: World) -> None:
        self.world = world

    def broken(self, text: str) -> ViolationError:
        """Build the error to raise."""
        return ViolationError(self.promise, text)

    def decided(self, record: Record, before: Record | None) -> None:
        """Somebody is the first to learn a record; `before` is the one it follows."""

    def learned(self, peer: SimPeer, record: Record) -> None:
        """A peer takes a record, before anything else is done about it."""

    def settled(self, peer: SimPeer, record: Record) -> None:
        """A peer has done everything that a record says."""

    def accept_asked(self, peer: PeerID, message: Accept) -> None:
        """A peer asks another to accept a record."""

    def promised(self, peer: PeerID, message: Promise) -> None:
        """A peer promises a ballot."""

    def leased(self, peer: PeerID, message: Lease) -> None:
        """A lead deals work to a trainer."""

    def accepted(self, peer: PeerID, message: Accepted) -> None:
        """A peer says that it accepted a record."""

    def step_applied(
        self, peer: SimPeer, stage: int, record: Record, content: Counter[int]
    ) -> None:
        """A peer adds a reduced gradient, whose microbatches these are, to its state (or will, once it has that)."""

    def state_reached(self, peer: SimPeer, stage: int, step: int, state: bytes) -> None:
        """A peer holds the state of a stage after this step."""

    def died(self, peer: SimPeer) -> None:
        """A peer lost what it had in memory."""

    def expelled(self, peer: SimPeer) -> None:
        """A peer finds that it is no member any more, or gives up being one; its ledger is still the old one."""

    def gave_up(self, peer: SimPeer) -> None:
        """A peer drops its stage's state, because a record let it leave or moved it."""

    def asked(self, trainer: SimPeer, ask: AskStage | AskSettle | AskClaim) -> None:
        """A trainer asks a member something."""

    def call_ended(
        self, trainer: SimPeer, ask: AskStage | AskSettle | AskClaim, event: TrainerEvent
    ) -> None:
        """A trainer's question is answered, or given up; it has not been told yet."""

    def said_void(self, peer: SimPeer, step: int, microbatch: int, attempt: Attempt) -> None:
        """A member told a trainer that no attempt up to this one counts here."""

    def counted(self, peer: SimPeer, ask: AskStage) -> None:
        """A member adds a microbatch to its gradient."""

    def blamed(self, by: SimPeer, peer: PeerID, reason: str) -> None:
        """A core says that a peer broke the protocol."""

    def looked(self) -> None:
        """Called every few seconds: look at whatever is there."""

    def ended(self) -> None:
        """The run is over, some time after all faults were healed."""
