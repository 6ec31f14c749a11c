"""What happens to the averaging core, and what it wants done. Vectors stay with the shell.

Events and effects shared by all cores (Tick, Received, PeerDown, ContactsFound, Send, Blame) are in `protocols.core`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from protocols.averaging.messages import Member
from protocols.core import Blame, ContactsFound, PeerDown, Received, Send, Tick
from protocols.ids import PeerID

# --- events ---


@dataclass(frozen=True, slots=True)
class RoundWanted:
    """Average our vector of this version. Ends with RoundFinished or RoundAborted; one at a time for a key."""

    now_s: float
    key: str
    version: int
    """Larger than any whose round has begun here under this key."""
    layout: bytes
    weight: float
    bandwidth: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundCancelled:
    """Nobody waits for this round here any more. No answer."""

    now_s: float
    key: str


@dataclass(frozen=True, slots=True)
class MeanReady:
    """The whole mean of an exchange is here, by an exchange or fetched."""

    now_s: float
    round_id: bytes
    exchange: int
    digests: tuple[bytes, ...]
    """Of its parts, in the order of the exchange's members."""


@dataclass(frozen=True, slots=True)
class ExchangeFailed:
    """An exchange, or fetching its mean, cannot be finished because of one member."""

    now_s: float
    round_id: bytes
    exchange: int
    peer: PeerID


AveragingEvent: TypeAlias = (
    Tick | Received | PeerDown | ContactsFound
    | RoundWanted | RoundCancelled | MeanReady | ExchangeFailed
)  # fmt: skip


# --- effects ---


@dataclass(frozen=True, slots=True)
class StartExchange:
    """Exchange vectors among these members; answer MeanReady or ExchangeFailed. Ends any earlier exchange of the round."""

    round_id: bytes
    exchange: int
    key: str
    version: int
    members: tuple[Member, ...]
    """In PeerID order; part i is the i-th one's."""
    deadline_s: float
    """How long it may take, in seconds; then whoever has not delivered is the one to name."""


@dataclass(frozen=True, slots=True)
class FetchMean:
    """Get the mean of a finished exchange from those who hold it; answer MeanReady or ExchangeFailed."""

    round_id: bytes
    exchange: int
    key: str
    version: int
    members: tuple[Member, ...]
    """Of the exchange."""
    digests: tuple[bytes, ...]
    holders: tuple[PeerID, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Phases:
    """What a round took, in seconds, in each of its phases."""

    gathering_s: float
    """From wanting it to the group's list."""
    agreeing_s: float
    """From the list to the first attempt's begin."""
    averaging_s: float
    """From there to the end."""


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """The mean of this exchange is the average, for everybody who finishes this round."""

    round_id: bytes
    key: str
    version: int
    exchange: int
    members: tuple[Member, ...]
    """Whose vectors count."""
    left_out: tuple[PeerID, ...]
    """Members of the group whose vectors do not."""
    attempts: int
    phases: Phases


@dataclass(frozen=True, slots=True)
class RoundAborted:
    """Nothing was averaged here, and nothing of this round ever will be."""

    key: str
    version: int
    reason: str
    newest: int
    """The version at which most others are, as far as is known; our own, when nothing else is."""
    begun: bool
    """Our vector may have been sent, and count for others."""


@dataclass(frozen=True, slots=True)
class ForgetRound:
    """Nobody will ask for anything of this round any more."""

    round_id: bytes


@dataclass(frozen=True, slots=True)
class LookForContacts:
    """Look in the directory now."""


AveragingEffect: TypeAlias = (
    Send | Blame | StartExchange | FetchMean | RoundFinished | RoundAborted | ForgetRound
    | LookForContacts
)  # fmt: skip
