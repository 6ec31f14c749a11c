"""What happens to the gossip core, and what it wants done. Tensors stay with the shell, under handles that it chose.

Events and effects shared by all cores (Tick, Received, PeerDown, ContactsFound, DrainWanted, Send, Blame) are in
`protocols.core`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.gossip.messages import ModelOffer, Push, PushAnswer
from protocols.ids import PeerID

# --- events ---


@dataclass(frozen=True, slots=True)
class Trained:
    """The batch that `TrainBatch` asked for is done. Not finite: its loss, or the model after it, is not."""

    now_s: float
    finite: bool


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The model was copied. Not finite by the same measure as ModelArrived, or its neighbours would blame us; the copy was
    thrown away then."""

    now_s: float
    sequence: int
    finite: bool


@dataclass(frozen=True, slots=True)
class Averaged:
    """Our model is now the average. `refused`: whose models were left out for their variance."""

    now_s: float
    part: int
    refused: tuple[PeerID, ...]
    finite: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Our model is the last good snapshot again, with a new optimizer state."""

    now_s: float


@dataclass(frozen=True, slots=True)
class ModelArrived:
    """A push came in whole. Its numbers are held under `handle` until AnswerPush refuses it, or DropModel or an
    average that has been done lets it go."""

    now_s: float
    peer: PeerID
    push: Push
    handle: int
    elements: int
    """Numbers in its body."""
    dtype_right: bool
    finite: bool
    """No number, and no tensor's variance, is infinite or NaN."""


@dataclass(frozen=True, slots=True)
class PushAnswered:
    now_s: float
    call: int
    answer: PushAnswer


@dataclass(frozen=True, slots=True)
class PushFailed:
    """Nobody knows whether the push arrived. `busy`: the peer said so, which shows that it lives."""

    now_s: float
    call: int
    busy: bool = False


@dataclass(frozen=True, slots=True)
class OfferAnswered:
    now_s: float
    peer: PeerID
    offer: ModelOffer


@dataclass(frozen=True, slots=True)
class OfferFailed:
    now_s: float
    peer: PeerID


@dataclass(frozen=True, slots=True)
class ModelFetched:
    """A neighbour's whole model is here, with the bytes that it signed, and was tried on a batch of ours."""

    now_s: float
    peer: PeerID
    handle: int
    finite: bool
    loss: float
    own_loss: float
    """Of our independent start on the same batch."""


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """It could not be fetched, or was not what the neighbour signed (the shell has blamed it then)."""

    now_s: float
    peer: PeerID


GossipEvent: TypeAlias = (
    Tick | Received | PeerDown | ContactsFound | DrainWanted
    | Trained | SnapshotTaken | Averaged | RolledBack
    | ModelArrived | PushAnswered | PushFailed
    | OfferAnswered | OfferFailed | ModelFetched | ModelFailed
)  # fmt: skip


# --- effects: work on our model, one at a time, each answered by its event before the next ---


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Train one batch of our own data; answer Trained."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Copy the model; answer SnapshotTaken. A finite copy is what pushes send and what a roll-back returns to.

    The copy before it is needed only by the pushes of it that are still on their way.
    """

    sequence: int


@dataclass(frozen=True, slots=True)
class AverageModels:
    """Average the models of these handles into this part of ours, release them, answer Averaged.

    The average is of what was pushed: of ours as it was in the last snapshot (and was averaged since), to which the batches
    trained since are then added (swarm.gossip.arithmetic.average_).
    """

    part: int
    models: tuple[tuple[PeerID, int], ...]
    """(sender, handle), distinct senders."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Return to the last good snapshot, or to the initial weights before the first; answer RolledBack.

    The optimizer starts anew: its moments have seen the numbers that were not finite.
    """


@dataclass(frozen=True, slots=True)
class AdoptModel:
    """Our model is the one under this handle from now on. Done before any later work; no answer."""

    handle: int
    trained: int
    """Batches behind it: where we go on in the schedule of the learning rate."""


# --- effects: everything else, at any time ---


@dataclass(frozen=True, slots=True)
class PushModel:
    """Call `peer` with this message and this part of snapshot `push.sequence`; answer PushAnswered or PushFailed."""

    call: int
    peer: PeerID
    push: Push


@dataclass(frozen=True, slots=True)
class AnswerPush:
    """Answer the push that came with this handle. Unless it was taken, its numbers can go."""

    handle: int
    answer: PushAnswer


@dataclass(frozen=True, slots=True)
class DropModel:
    """The numbers under this handle are not needed any more."""

    handle: int


@dataclass(frozen=True, slots=True)
class AskOffer:
    """Call `peer` with OfferWanted; answer OfferAnswered or OfferFailed."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Fetch the offered snapshot; check signature, root, layout; try it on a batch. Answer ModelFetched or ModelFailed."""

    peer: PeerID
    offer: ModelOffer


@dataclass(frozen=True, slots=True)
class LookForContacts:
    """Look in the directory now: somebody wrote whom we do not know."""


@dataclass(frozen=True, slots=True)
class Left:
    """Nothing is on its way any more: this peer can go."""


GossipEffect: TypeAlias = (
    Send | Blame | TrainBatch | TakeSnapshot | AverageModels | RollBack | AdoptModel
    | PushModel | AnswerPush | DropModel | AskOffer | FetchModel | LookForContacts | Left
)  # fmt: skip
