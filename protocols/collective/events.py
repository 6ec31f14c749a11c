"""What happens to the core of a collective run, and what it wants done. Tensors stay with the shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from protocols.collective.messages import Standing
from protocols.core import Blame, ContactsFound, DrainWanted, Received, Send, Tick
from protocols.ids import PeerID

# --- events ---


@dataclass(frozen=True, slots=True)
class Trained:
    """The step that was wanted is done."""

    now_s: float
    finite: bool
    """False: loss or gradient were not, and the model was left alone."""


@dataclass(frozen=True, slots=True)
class RoundBegun:
    """The outer gradient of a fragment was taken, and is on its way; or could not be, since it is not finite."""

    now_s: float
    fragment: int
    finite: bool


@dataclass(frozen=True, slots=True)
class MeanArrived:
    """A round ended with a mean, which the shell keeps."""

    now_s: float
    fragment: int
    version: int
    group: tuple[PeerID, ...]
    """Whose outer gradients are in it, in PeerID order."""


@dataclass(frozen=True, slots=True)
class RoundMissed:
    """A round ended without a mean for us. Nothing has changed here."""

    now_s: float
    fragment: int
    version: int
    may_count: bool = False
    """Others may have finished it, with our outer gradient."""


@dataclass(frozen=True, slots=True)
class MeanApplied:
    """The outer step that was wanted is done; or could not be, since its outcome is not finite, and nothing has changed."""

    now_s: float
    fragment: int
    finite: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Our own parameters are the outer ones again."""

    now_s: float


@dataclass(frozen=True, slots=True)
class StandingAnswered:
    """A member said where it is."""

    now_s: float
    peer: PeerID
    standing: Standing


@dataclass(frozen=True, slots=True)
class StandingFailed:
    """A member did not answer."""

    now_s: float
    peer: PeerID


@dataclass(frozen=True, slots=True)
class StateFetched:
    """A fragment's outer state is here, kept by the shell until it is adopted or dropped."""

    now_s: float
    fragment: int
    peer: PeerID
    version: int
    lines: tuple[bytes, ...]
    """Its history, newest first: at least one."""
    has_ours: bool
    """Our outer gradient was in its newest round."""


@dataclass(frozen=True, slots=True)
class StateFailed:
    """The member could not give it, or what it gave is not what it should be."""

    now_s: float
    fragment: int
    peer: PeerID


@dataclass(frozen=True, slots=True)
class StateAdopted:
    """The fetched state is ours; or could not be taken, since the outcome is not finite, and nothing has changed."""

    now_s: float
    fragment: int
    finite: bool


CollectiveEvent: TypeAlias = (
    Tick
    | Received
    | ContactsFound
    | DrainWanted
    | Trained
    | RoundBegun
    | MeanArrived
    | RoundMissed
    | MeanApplied
    | RolledBack
    | StandingAnswered
    | StandingFailed
    | StateFetched
    | StateFailed
    | StateAdopted
)

# --- effects; those marked are work on the model: one at a time, each answered by its event ---


@dataclass(frozen=True, slots=True)
class TrainStep:
    """Work: train local step `step` (counted from 0). Answer: Trained."""

    step: int


@dataclass(frozen=True, slots=True)
class BeginRound:
    """Work: take the outer gradient of a fragment, and send it on its way to be averaged. Answer: RoundBegun."""

    fragment: int
    version: int
    line: bytes
    """Of the outer state that it is relative to: only those with the same may average."""
    weight: int
    """Local steps that are in it."""
    alone: bool
    """Nobody else is in the run: our outer gradient is the mean, at once."""


@dataclass(frozen=True, slots=True)
class ApplyMean:
    """Work: do the outer step of a fragment with the mean that arrived, and mix it in. Answer: MeanApplied."""

    fragment: int
    overlapped: bool
    version: int
    lines: tuple[bytes, ...]
    """What the outer state is called then."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """Work: set our own parameters to the outer ones, with a new optimizer. Answer: RolledBack."""


@dataclass(frozen=True, slots=True)
class AdoptState:
    """Work: take the fetched state of a fragment for ours. Answer: StateAdopted."""

    fragment: int
    counted: bool
    """It has what we handed in last: that is no longer ours alone."""


@dataclass(frozen=True, slots=True)
class DropMean:
    """Forget a mean that came too late."""

    fragment: int


@dataclass(frozen=True, slots=True)
class CancelRound:
    """Wait for this round no longer: others have gone on without us. Answer: RoundMissed, if it had not ended."""

    fragment: int
    version: int


@dataclass(frozen=True, slots=True)
class AskStanding:
    """Ask a member where it is."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class FetchState:
    """Fetch a fragment's outer state from a member."""

    peer: PeerID
    fragment: int


@dataclass(frozen=True, slots=True)
class LookForContacts:
    """Ask the directory soon."""


@dataclass(frozen=True, slots=True)
class Left:
    """All that was on its way has ended: this peer can go."""


CollectiveEffect: TypeAlias = (
    TrainStep
    | BeginRound
    | ApplyMean
    | RollBack
    | AdoptState
    | DropMean
    | CancelRound
    | AskStanding
    | FetchState
    | LookForContacts
    | Left
    | Send
    | Blame
)
