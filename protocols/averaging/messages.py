"""What peers say to form a group and to agree on whom its average counts. All of it is small, and sent as casts.

| message | from, to | says |
|---|---|---|
| Join | whoever wants a round -> the peer where it meets the others | I am here; repeated until a group is formed |
| Noted | meeting peer -> who came | you are on the list; and where I would meet the others myself |
| Late | meeting peer -> who came | that round is over, or was formed without you |
| Alone | meeting peer -> who came | nobody else did |
| Come | meeting peer -> who has not come | others are here for this round |
| Form | meeting peer -> members | these are the group: do you agree? |
| Agree, Decline | member -> meeting peer | |
| Begin | who owns the attempt -> members | exchange vectors among these, or take over that finished exchange |
| Have | member -> members | I hold the whole mean of this exchange |
| Trouble | member -> members | this member does not deliver |
| Prepare, Promise | who owns the next attempt <-> members | give up earlier attempts; what do you hold? |
| Leaving | member -> members, meeting peer | I take no part any more |

A round is named by the hash of its whole Form and of who sent it: two lists of members are two rounds, also when a liar sends
them under one number. Tags are part of the wire form: adding a message adds a tag, an old tag never changes its meaning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

MEMBERS_MAX: Final = 65
ATTEMPT_MAX: Final = 10_000

Key = Annotated[str, Size(1, 64)]
Digest = Annotated[bytes, Size(32, 32)]
Attempt = Annotated[int, Range(1, ATTEMPT_MAX)]
MemberIndex = Annotated[int, Range(0, MEMBERS_MAX - 1)]
Group = Annotated[tuple[MemberIndex, ...], Size(1, MEMBERS_MAX)]
"""Members that take part in an exchange, by their places in the Form, rising. Part i of the vector is the i-th one's."""
Digests = Annotated[tuple[Digest, ...], Size(1, MEMBERS_MAX)]
"""Of the parts of a mean, in the order of the group: equal digests, equal bits."""


@dataclass(frozen=True, slots=True)
class Member:
    """One peer of a group."""

    peer: Annotated[PeerID, Size(2, 64)]
    weight: Annotated[float, Range(0.0, 1e12)]
    bandwidth: Annotated[float, Range(0.0, 1e12)]
    """Bytes per second that it can send and receive, as it says; 0 is not known. Parts are cut in proportion."""


@dataclass(frozen=True, slots=True)
class Join:
    key: Key
    version: Natural
    layout: Digest
    """Of what all of a group must have in common: length of the vector, codec."""
    weight: Annotated[float, Range(0.0, 1e12)]
    bandwidth: Annotated[float, Range(0.0, 1e12)]


@dataclass(frozen=True, slots=True)
class Noted:
    key: Key
    version: Natural
    meeting: Annotated[PeerID, Size(2, 64)]
    """Where the sender itself would go: peers whose directories differ find one place."""


@dataclass(frozen=True, slots=True)
class Late:
    key: Key
    version: Natural
    newest: Natural
    """The sender's own version."""


@dataclass(frozen=True, slots=True)
class Alone:
    key: Key
    version: Natural


@dataclass(frozen=True, slots=True)
class Come:
    key: Key
    version: Natural


@dataclass(frozen=True, slots=True)
class Form:
    key: Key
    version: Natural
    layout: Digest
    nonce: Natural
    """Drawn at random: the same peers in the same version are another round the second time."""
    spread_s: Annotated[float, Range(0.0, 1e6)]
    """Between the first member's arrival and the last one's, as it was seen: what the next group should wait for."""
    members: Annotated[tuple[Member, ...], Size(2, MEMBERS_MAX)]
    """In the order of their PeerIDs."""


@dataclass(frozen=True, slots=True)
class Agree:
    round_id: Digest


@dataclass(frozen=True, slots=True)
class Decline:
    round_id: Digest


@dataclass(frozen=True, slots=True)
class Result:
    """A finished exchange, as far as names go."""

    exchange: Attempt
    """The attempt in which the vectors were exchanged."""
    group: Group
    digests: Digests


@dataclass(frozen=True, slots=True)
class Begin:
    round_id: Digest
    attempt: Attempt
    group: Group
    """Who exchanges vectors, when there is no result to take over."""
    result: Result | None = None
    """What is taken over instead of a new exchange; it may count already."""
    holders: Annotated[tuple[MemberIndex, ...], Size(0, MEMBERS_MAX)] = ()
    """Of the result."""


@dataclass(frozen=True, slots=True)
class Have:
    round_id: Digest
    attempt: Attempt
    result: Result


@dataclass(frozen=True, slots=True)
class Trouble:
    round_id: Digest
    attempt: Attempt
    accused: MemberIndex


@dataclass(frozen=True, slots=True)
class Prepare:
    round_id: Digest
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Promise:
    round_id: Digest
    attempt: Attempt
    accepted: Annotated[int, Range(0, ATTEMPT_MAX)]
    """The last attempt in which this member said Have; 0: in none."""
    result: Result | None
    """Of that attempt; or, with `accepted` 0, one that it holds and that nobody may rely on."""


@dataclass(frozen=True, slots=True)
class Leaving:
    round_id: Digest


RoundMessage: TypeAlias = Begin | Have | Trouble | Prepare | Promise | Leaving
Message: TypeAlias = Join | Noted | Late | Alone | Come | Form | Agree | Decline | RoundMessage
_TAGS: Final[dict[str, type[Message]]] = {
    "join": Join,
    "noted": Noted,
    "late": Late,
    "alone": Alone,
    "come": Come,
    "form": Form,
    "agree": Agree,
    "decline": Decline,
    "begin": Begin,
    "have": Have,
    "trouble": Trouble,
    "prepare": Prepare,
    "promise": Promise,
    "leaving": Leaving,
}
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def round_id_of(form: Form, meeting: PeerID) -> bytes:
    """Name the round that this Form of this peer begins."""
    packed = msgpack.packb(["murmura averaging round", bytes(meeting), encode(form)])
    return hashlib.blake2b(packed, digest_size=32).digest()


def encode_message(message: Message) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_message_untrusted(data: Any) -> Message:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("an averaging message is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown averaging message")
    try:
        message: Message = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message
