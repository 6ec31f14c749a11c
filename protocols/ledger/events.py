"""What happens to a member's core, and what it wants done. The shell and the simulator speak only this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from protocols.core import (
    Blame,
    ContactsFound,
    DrainWanted,
    PeerDown,
    Received,
    Send,
    Tick,
)
from protocols.ids import PeerID
from protocols.ledger.messages import Rumour
from protocols.ledger.view import Ballot, Record, View

FAREWELLS_MAX: Final = 64
"""How many members a node that was let go tells the record by which it goes: perhaps nobody else can, but they can tell the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """What the cores need of a run (protocols.run)."""

    stages: int
    microbatches: int
    steps: int
    first_step: int = 0
    """What the run begins at: its initial state, which nobody needs to fetch from a member, counts as that of this step."""
    replicas_to_start: int = 1
    evaluate_every: int = 0
    evaluation_microbatches: int = 0
    silence_s: float = 2.0
    """A peer not heard for this long is suspected; `calm_pace` times as long while there is nothing to do. At once, when the
    transport has lost it."""
    reduce_s: float = 20.0
    """A member that has not reduced by then is removed: the bound on how long a stuck one stops the rest."""
    lease_s: float = 60.0
    """After this long an idle trainer is given what another still holds; doubled each time that happens."""
    calm_pace: int = 8
    """While there is nothing to do, hearts beat so many times slower: a node that only waits should cost nothing."""

    @property
    def heartbeat_s(self) -> float:
        """Four chances before anybody is suspected."""
        return self.silence_s / 4


# --- events ---


@dataclass(frozen=True, slots=True)
class Heard:
    """A rumour came from the run's topic: late, repeated, or false, as it may be."""

    now_s: float
    peer: PeerID
    rumour: Rumour


@dataclass(frozen=True, slots=True)
class TallyChanged:
    """The shell counted something, or found the gradient broken."""

    now_s: float
    broken: bool = False


@dataclass(frozen=True, slots=True)
class ReduceFinished:
    """We hold the reduced gradient that StartReduce asked for."""

    now_s: float
    index: int
    ballot: Ballot
    gradient_hash: bytes
    squared_norm: float
    loss_sum: float
    state_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class ReduceFailed:
    """The exchange could not be finished because of `peer`."""

    now_s: float
    index: int
    ballot: Ballot
    peer: PeerID


@dataclass(frozen=True, slots=True)
class StateLoaded:
    """The stage's state has been fetched, verified and brought up to date: we can serve."""

    now_s: float


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """No donor has the state of the step at which we were admitted any more: admit us again, at the present one."""

    now_s: float


Event: TypeAlias = (
    Received | Tick | PeerDown | ContactsFound | Heard | TallyChanged | ReduceFinished | ReduceFailed
    | StateLoaded | FetchFailed | DrainWanted
)  # fmt: skip


# --- effects ---


@dataclass(frozen=True, slots=True)
class StartReduce:
    """Reduce the stage's gradient of `step` with the group; answer ReduceFinished or ReduceFailed.

    `contributors` have a gradient; the others of `group` only receive. Both sorted by PeerID. Replaces any reduction
    in progress, but not the result of a finished one: keep that until this one is finished too, since a record may
    still name it. The gradient itself stays as it is until ApplyStep or DiscardGradient.
    """

    index: int
    ballot: Ballot
    step: int
    group: tuple[PeerID, ...]
    contributors: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class ApplyStep:
    """Apply the reduced gradient that this record names for our stage, then accumulate the next step from zero.

    Named by its hash, `record.stages[stage].gradient_hash`: a newer ballot may have reduced the same bytes again.
    """

    record: Record


@dataclass(frozen=True, slots=True)
class DiscardGradient:
    """Fenced: accumulate the step in progress again, from zero."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """We host this stage from now on. Load its state of `record.step` from `donors`, then say StateLoaded.

    Comes again when we are moved to another stage, or must fetch anew after FetchFailed: drop what was loaded or
    collected before. Steps committed meanwhile arrive as ApplyStep: buffer their gradients and apply them after loading.
    """

    record: Record
    stage: int
    donors: tuple[PeerID, ...]
    synced: bool = False
    """Nothing to load: the state is the initial one (step 0), or the one we said we hold."""

    def donors_in(self, view: View) -> list[PeerID]:
        """Return the donors that are still there. One that was restarted is not: it has to fetch the state itself."""
        found = []
        for peer in self.donors:
            then, now = self.record.view.find(peer), view.find(peer)
            if then is not None and now is not None and now.stage == self.stage:
                found += [peer] if now.incarnation == then.incarnation else []
        return found


@dataclass(frozen=True, slots=True)
class OfferState:
    """Newcomers joined our stage: keep a snapshot of the state of this step for them."""

    step: int
    newcomers: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class Expelled:
    """We are no member any more: join again with a new Ledger that says which state we hold."""

    reason: str
    let_go: bool = False
    """We wanted to leave, and may: what we held, others have. If we drain and were not let go, the state may be needed:
    join again with it, say DrainWanted again, and exit at the drain's deadline at the latest."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A record became known: for the journal, the status and the trainers of this node."""

    record: Record


@dataclass(frozen=True, slots=True)
class Spread:
    """Publish a rumour on the run's topic. Whether anybody hears it does not matter."""

    rumour: Rumour


Effect: TypeAlias = (
    Send
    | StartReduce
    | ApplyStep
    | DiscardGradient
    | Admitted
    | OfferState
    | Expelled
    | Learned
    | Spread
    | Blame
)
