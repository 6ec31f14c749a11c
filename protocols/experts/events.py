"""What `protocols.experts.placement` is told, and what it wants done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from protocols.core import DrainWanted, Tick
from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

# --- events ---


@dataclass(frozen=True, slots=True)
class NodesSeen:
    """Who is in the run and could host, by the directory, ourselves left out: peer -> experts it has room for in all."""

    now_s: float
    rooms: Mapping[PeerID, int]


@dataclass(frozen=True, slots=True)
class ClaimsSeen:
    """Every claim to every expert, our own left out. Only once all prefixes have been looked up."""

    now_s: float
    claims: Mapping[ExpertUID, Sequence[Claim]]


@dataclass(frozen=True, slots=True)
class Suspected:
    """A call to this host failed."""

    now_s: float
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Probed:
    now_s: float
    peer: PeerID
    alive: bool


@dataclass(frozen=True, slots=True)
class NewerEpoch:
    """A caller says that it knows a newer epoch of an expert than we host."""

    now_s: float
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class OffersFound:
    """What the nodes asked for a snapshot had; signatures are checked."""

    now_s: float
    uid: ExpertUID
    offers: tuple[tuple[PeerID, SnapshotOffer], ...]
    """With who keeps it."""
    silent: tuple[PeerID, ...] = ()
    """Who did not answer, and so may have one."""
    seen: tuple[tuple[PeerID, Seen], ...] = ()
    """Of whom each that answered says that it was a host."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """The expert runs here now."""

    now_s: float
    uid: ExpertUID
    epoch: int


@dataclass(frozen=True, slots=True)
class HostFailed:
    """Fetching or building it did not work."""

    now_s: float
    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class SnapshotKept:
    """So many of the nodes that were to keep a snapshot have it."""

    now_s: float
    uid: ExpertUID
    keepers: int
    leaving: tuple[PeerID, ...] = ()
    """Those that did not take it because they leave."""


@dataclass(frozen=True, slots=True)
class HandOverOffered:
    """A host wants us to take its expert, which it has frozen; its signature is checked."""

    now_s: float
    peer: PeerID
    offer: SnapshotOffer
    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Our successor has it, or not; not knowing counts as not: epochs settle it."""

    now_s: float
    uid: ExpertUID
    epoch: int
    """Of ours: what is said of an earlier one does not count for an expert that has come back meanwhile."""
    taken: bool
    successor: int = 0
    """Its epoch, as the successor says."""


Event: TypeAlias = (
    Tick
    | NodesSeen
    | ClaimsSeen
    | Suspected
    | Probed
    | NewerEpoch
    | OffersFound
    | Hosted
    | HostFailed
    | SnapshotKept
    | HandOverOffered
    | HandedOver
    | DrainWanted
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class Create:
    """Build the expert with its initial weights and host it."""

    uid: ExpertUID
    epoch: int
    lost: bool
    """It had been trained, and no snapshot was found."""


@dataclass(frozen=True, slots=True)
class FindSnapshots:
    """Ask these nodes, and ourselves, for the newest snapshot."""

    uid: ExpertUID
    nodes: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class Adopt:
    """Fetch this snapshot, from us if we keep it, else from the first of these that has it, and host the expert."""

    uid: ExpertUID
    epoch: int
    offer: SnapshotOffer
    donors: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class AnswerHandOver:
    """Refuse it. One that is taken is answered when it is hosted."""

    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop hosting it; of one that is superseded keep the last snapshot, as if for somebody else."""

    uid: ExpertUID
    reason: Literal["superseded", "handed over"]


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Take a snapshot, if the expert has stepped since the last, and have these nodes keep it."""

    uid: ExpertUID
    epoch: int
    keepers: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class HandOverTo:
    """Freeze it, take a snapshot, and ask this node to take it."""

    uid: ExpertUID
    epoch: int
    peer: PeerID


@dataclass(frozen=True, slots=True)
class ProbePeer:
    peer: PeerID


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look up soon what the directory says of this expert."""

    uid: ExpertUID


@dataclass(frozen=True, slots=True)
class Doubt:
    """Its records count for nothing until it writes newer ones."""

    peer: PeerID


@dataclass(frozen=True, slots=True)
class Announce:
    """This is what we host."""

    experts: tuple[tuple[ExpertUID, int], ...]
    """With epochs."""


@dataclass(frozen=True, slots=True)
class Left:
    """Nothing is held here any more."""


Effect: TypeAlias = (
    Create
    | FindSnapshots
    | Adopt
    | AnswerHandOver
    | Drop
    | TakeSnapshot
    | HandOverTo
    | ProbePeer
    | LookAgain
    | Doubt
    | Announce
    | Left
)
