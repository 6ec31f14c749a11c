"""What members and trainers tell each other. One-way casts; each may be lost, repeated or late without harm.

Tags are part of the wire form: adding a message adds a tag, an old tag never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID
from protocols.ledger.grants import Grant, Signature
from protocols.ledger.view import (
    MEMBERS_MAX,
    Ballot,
    Digest,
    IdSet,
    Index,
    Loss,
    MemberTally,
    Record,
    unpack_ids,
)
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

ReasonText = Annotated[str, Size(0, 200)]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Lead -> members and trainers: I lead; this is the newest record. Anyone else -> asker: ask this lead."""

    index: Natural
    digest: Digest
    ballot: Ballot
    pace: Annotated[int, Range(1, 16)] = 1
    """I beat once in so many heartbeats, since there is nothing to do: suspect me that much later."""
    stay: bool = False
    """To a leaving member: nobody else holds your stage's state yet, so go on serving until somebody does."""


@dataclass(frozen=True, slots=True)
class TallyReport:
    """Member -> lead: what my gradient contains by now. Cumulative, so any later one replaces it."""

    index: Natural
    step: Natural
    """The step being accumulated."""
    counted: IdSet
    synced: bool = True
    """False while this member is still fetching its stage's state."""
    leaving: bool = False
    """It drains: keep it for the step in progress if that is free, then let it go."""
    broken: bool = False
    """Its gradient of this step cannot be used (device error, non-finite), or its fetch failed: fence it."""


@dataclass(frozen=True, slots=True)
class RecordsWanted:
    """Anyone -> member: send me the records from this index on."""

    first: Natural


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records, oldest first; also how a new record is broadcast."""

    records: Annotated[tuple[Record, ...], Size(0, 64)]
    newest: Natural = 0
    """Index of the newest record the sender knows: ask again when it is not among these."""
    cut: bool = False
    """The sender no longer keeps the first records that were asked for."""


@dataclass(frozen=True, slots=True)
class HeldState:
    """The committed state an expelled member still has. It may be the last copy, when a partition took the rest."""

    stage: Annotated[int, Range(0, 1023)]
    step: Natural
    epoch: Natural = 0
    """In which it was committed: a step may come again in a later one."""


@dataclass(frozen=True, slots=True)
class JoinWanted:
    """Outsider -> lead: let me host a stage. Repeated until a record admits this incarnation."""

    incarnation: Natural
    stage: Annotated[int, Range(0, 1023)] | None = None
    """None leaves the choice to the lead (protocols.ledger.placement)."""
    holds: HeldState | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    """Candidate -> members: promise me this ballot (Paxos phase 1a)."""

    index: Natural
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Promise:
    """Member -> candidate: nothing below this ballot any more; this is what I had accepted (phase 1b)."""

    index: Natural
    ballot: Ballot
    accepted_at: Ballot | None
    accepted: Record | None
    report: TallyReport


@dataclass(frozen=True)
class Reduce:
    """Lead -> members: stop counting, reduce these tallies within your stage."""

    index: Natural
    ballot: Ballot
    step: Natural
    tallies: Annotated[tuple[MemberTally, ...], Size(0, MEMBERS_MAX)]

    @cached_property
    def counted(self) -> dict[PeerID, int]:
        """The microbatches that each member's gradient is to contribute."""
        return {entry.peer: unpack_ids(entry.counted) for entry in self.tallies}


@dataclass(frozen=True, slots=True)
class Reduced:
    """Member -> lead: I hold the reduced gradient of my stage."""

    index: Natural
    ballot: Ballot
    gradient_hash: Digest
    squared_norm: Annotated[float, Range(0.0)]
    loss_sum: Annotated[float, Range(-1e11, 1e11)]
    """Over the microbatches I counted (65,536 at most), last stage only; 0 elsewhere."""
    state_hash: Annotated[bytes, Size(0, 32)] = b""


@dataclass(frozen=True, slots=True)
class ReduceStuck:
    """Member -> lead: I cannot finish reducing because of this peer."""

    index: Natural
    ballot: Ballot
    peer: PeerID


@dataclass(frozen=True, slots=True)
class Accept:
    """Lead -> members: accept this record (phase 2a)."""

    index: Natural
    ballot: Ballot
    record: Record


@dataclass(frozen=True, slots=True)
class Accepted:
    """Member -> lead: I did (phase 2b)."""

    index: Natural
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Refused:
    """Member -> candidate or lead: I promised a higher ballot, or your record is wrong."""

    index: Natural
    ballot: Ballot
    promised: Ballot
    reason: ReasonText


@dataclass(frozen=True, slots=True)
class WorkWanted:
    """Trainer -> lead: I can take this many more microbatches; these I hold. Also renews the leases held."""

    step: Natural
    slots: Annotated[int, Range(0, 4096)]
    holding: IdSet
    """Training microbatches, and after them (from bit `microbatches` on) the held-out ones."""
    seen: Natural = 0
    """The newest lease generation received; what was dealt later is still on its way."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Lead -> trainer: these microbatches are yours until the step commits or you fall silent."""

    index: Natural
    step: Natural
    generation: Natural
    """Later leases of the same microbatch have a higher one; members refuse work under a lower one."""
    ids: IdSet
    """Bits from `microbatches` on are held-out ones, to run forward through the parameters of step - 1."""
    fresh: bool
    """Nobody can have worked on them before: the members need not be asked."""
    lost: IdSet = b""
    """These, which you say you hold, another trainer has by now: stop working on them."""
    counted: Annotated[tuple[MemberTally, ...], Size(0, MEMBERS_MAX)] = ()
    """Of what is not fresh: who said that it counted it."""
    signature: Signature = b""
    """Of the grant (protocols.ledger.grants) that is in this lease. The driver signs what its core deals."""

    def grant(self, lead: PeerID) -> Grant:
        """Return what the trainer shows to members."""
        return Grant(lead, self.step, self.generation, self.ids, self.signature)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Trainer -> lead: the loss of one held-out microbatch under the parameters of step - 1."""

    step: Natural
    microbatch: Natural
    loss: Loss


@dataclass(frozen=True, slots=True)
class Rumour:
    """Lead -> everybody who listens on the run's topic: the members have changed, by this record."""

    index: Index


Message: TypeAlias = (
    Heartbeat | TallyReport | RecordsWanted | Records | JoinWanted | Prepare | Promise | Reduce
    | Reduced | ReduceStuck | Accept | Accepted | Refused | WorkWanted | Lease | Evaluated
)  # fmt: skip

_TAGS: Final[dict[str, type[Any]]] = {
    "heartbeat": Heartbeat, "tally": TallyReport, "records-wanted": RecordsWanted,
    "records": Records, "join": JoinWanted, "prepare": Prepare, "promise": Promise,
    "reduce": Reduce, "reduced": Reduced, "stuck": ReduceStuck, "accept": Accept,
    "accepted": Accepted, "refused": Refused, "work": WorkWanted, "lease": Lease,
    "evaluated": Evaluated,
}  # fmt: skip
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def encode_message(message: Message) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_message_untrusted(data: Any) -> Message:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("a ledger message is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown ledger message")
    try:
        message: Message = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message


RUMOUR_BYTES_MAX: Final = 32


def encode_rumour(rumour: Rumour) -> bytes:
    return bytes(msgpack.packb(encode(rumour)))


def decode_rumour_untrusted(data: bytes) -> Rumour:
    """Check and build one. Raises RemoteProtocolError only."""
    if len(data) > RUMOUR_BYTES_MAX:
        raise RemoteProtocolError("a rumour is longer than any can be")
    try:
        return decode(Rumour, unpack_untrusted(data))
    except SchemaError as error:
        raise RemoteProtocolError(f"bad rumour: {error.problem}") from error
