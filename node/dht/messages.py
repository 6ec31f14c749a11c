"""What the daemon and its dht process say to each other: a 4-byte little-endian length, then one msgpack map.

    question  {"id": n, "ask": name, "with": {...}}
    answer    {"id": n, "answer": {...}} or {"id": n, "failed": one sentence}

Answers may come in any order. The dht process talks to strangers all day, so the daemon takes its answers as
untrusted too: bounded, and decoded by schema.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID
from protocols.records import RECORD_BYTES_MAX
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

LENGTH: Final = struct.Struct("<I")
RECORDS_MAX: Final = 1024
"""In one answer: what a storing node keeps under one key at most."""
MESSAGE_BYTES_MAX: Final = RECORDS_MAX * (RECORD_BYTES_MAX + 128)
"""An answer full of the largest records: 4.8 MB. Usual ones have a few kB."""
PEERS_MAX: Final = 256

Digest: TypeAlias = Annotated[bytes, Size(20, 20)]
RawRecord: TypeAlias = Annotated[bytes, Size(1, RECORD_BYTES_MAX)]
Seconds: TypeAlias = Annotated[float, Range(-1e11, 1e11)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meet:
    """Greet these peers, to which the transport is connected, and find our neighbours through them."""

    peers: Annotated[tuple[PeerID, ...], Size(0, PEERS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What one peer answered."""

    peer: PeerID
    answered: bool
    sees_us: bool = False
    """It could reach our directory in turn: both of us are in one DHT."""
    skew_s: Seconds = 0.0
    """Its clock minus ours, half a round trip taken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Every peer that was asked, in order."""

    greetings: Annotated[tuple[Greeting, ...], Size(0, PEERS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRecord:
    """A record and where it belongs."""

    digest: Digest
    raw: RawRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Store our records, several keys at once, at the peers nearest to each."""

    records: Annotated[tuple[SealedRecord, ...], Size(0, RECORDS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """For each record, in order: how many other peers took it, and whether we hold it ourselves."""

    by_others: Annotated[tuple[Natural, ...], Size(0, RECORDS_MAX)]
    by_us: Annotated[tuple[bool, ...], Size(0, RECORDS_MAX)]
    alone: bool
    """We know no other peer of the DHT, so there is nobody else to store anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """Ask the peers nearest to a key, and ourselves, for what they hold under it."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUpFirst:
    """Begin to ask as `LookUp` does; answered with what the first of them that holds something has. The rest are asked too."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUpRest:
    """What the search of the latest `LookUpFirst` under this key finds in the end; a new search if that one is over."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRecord:
    """A record that passed the checks of the dht process, and the sub-key it was under."""

    owner: PeerID
    raw: RawRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """At most one record per owner, its newest."""

    records: Annotated[tuple[FoundRecord, ...], Size(0, RECORDS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStatistics:
    """How is the directory doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts since this dht process began."""

    peers: Natural
    """Peers in the routing table."""
    records: Natural
    """Stored here for everybody."""
    record_bytes: Natural
    refused_stores: Annotated[dict[str, Natural], Size(0, 64)]
    """By `protocols.records.Refusal`: what others asked us to store."""
    refused_reads: Annotated[dict[str, Natural], Size(0, 64)]
    """By the same: what others gave us when we looked up."""


Question: TypeAlias = Meet | Store | LookUp | LookUpFirst | LookUpRest | AskStatistics
Answer: TypeAlias = Met | Stored | Found | Statistics

QUESTIONS: Final[dict[str, type[Question]]] = {
    shape.__name__: shape for shape in (Meet, Store, LookUp, LookUpFirst, LookUpRest, AskStatistics)
}


@dataclass(frozen=True, slots=True)
class Failed:
    """The dht process could not do what was asked."""

    reason: str


def pack_question(number: int, question: Question) -> bytes:
    """Return length and body."""
    return _pack({"id": number, "ask": type(question).__name__, "with": encode(question)})


def pack_answer(number: int, answer: Answer | Failed) -> bytes:
    """Return length and body."""
    if isinstance(answer, Failed):
        return _pack({"id": number, "failed": answer.reason[:500]})
    return _pack({"id": number, "answer": encode(answer)})


def body_length_untrusted(raw: bytes) -> int:
    """Read the length before a body. Raises RemoteProtocolError when it is over the bound."""
    (length,) = LENGTH.unpack(raw)
    if not 0 < length <= MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"a dht message of {length} bytes; at most {MESSAGE_BYTES_MAX}")
    return int(length)


def question_untrusted(body: bytes) -> tuple[int, Question]:
    """Decode a question. Raises RemoteProtocolError only."""
    match unpack_untrusted(body):
        case {"id": int(number), "ask": str(name), "with": content} if name in QUESTIONS:
            try:
                return number, decode(QUESTIONS[name], content)
            except SchemaError as error:
                raise RemoteProtocolError(f"not a {name}: {error}") from error
    raise RemoteProtocolError("not a question to the dht process")


def answer_untrusted(body: bytes) -> tuple[int, Any]:
    """Return the number of the question and either plain data for `decode` or a Failed. Raises RemoteProtocolError."""
    match unpack_untrusted(body):
        case {"id": int(number), "answer": answer}:
            return number, answer
        case {"id": int(number), "failed": str(reason)}:
            return number, Failed(reason)
    raise RemoteProtocolError("not an answer of the dht process")


def _pack(data: Any) -> bytes:
    body = msgpack.packb(data)
    return LENGTH.pack(len(body)) + bytes(body)
