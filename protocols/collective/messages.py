"""What peers of a collective run say to each other, besides what forming groups takes. Everything here is small.

| service | request | answer |
|---|---|---|
| `collective` | StandingWanted | Standing |
| `collective` (cast) | RoundBegins | |
| `collective` (cast) | Overtaken | |
| `collective` (cast) | Leaving | |

Outer states are fetched as snapshots of the parts `outer/0`, `outer/1`, ... from the service `state`.
Tags are part of the wire form: adding a message adds a tag, an old tag never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.collective.settings import FRAGMENTS_MAX
from protocols.errors import RemoteProtocolError
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

FragmentIndex = Annotated[int, Range(0, FRAGMENTS_MAX - 1)]
Line = Annotated[bytes, Size(16, 16)]
"""Names the history of a fragment's outer state: which groups averaged it, at which steps, in which order."""
HISTORY_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class FragmentStanding:
    """One fragment's outer state, as far as names go."""

    version: Natural
    """Local step after which it was averaged last; 0: never."""
    lines: Annotated[tuple[Line, ...], Size(1, HISTORY_MAX)]
    """Its history's name, and before it those of the states that it came from, the newest first."""
    round: Natural
    """The version of the round in which it is being averaged, so that this state will soon be an old one; 0: in none."""


@dataclass(frozen=True, slots=True)
class StandingWanted:
    """Where are you?"""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a peer is."""

    step: Natural
    """Local steps of the run; 0 also while it has no state."""
    fragments: Annotated[tuple[FragmentStanding, ...], Size(0, FRAGMENTS_MAX)]
    """Empty while the peer has nothing that others could go by."""


@dataclass(frozen=True, slots=True)
class RoundBegins:
    """The sender averages a fragment now: who has the same outer state may join with what it has."""

    fragment: FragmentIndex
    version: Natural
    line: Line


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Answers a RoundBegins: the sender has an outer state that came from the one that it names."""

    fragment: FragmentIndex
    line: Line
    """The sender's."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The sender takes no part any more."""


Message: TypeAlias = StandingWanted | Standing | RoundBegins | Overtaken | Leaving
_TAGS: Final[dict[str, type[Message]]] = {
    "standing-wanted": StandingWanted,
    "standing": Standing,
    "round-begins": RoundBegins,
    "overtaken": Overtaken,
    "leaving": Leaving,
}
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def encode_message(message: Message) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_message_untrusted(data: Any) -> Message:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("a message of a collective run is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown message of a collective run")
    try:
        message: Message = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message


def standing_bytes(standing: Standing) -> bytes:
    """Return what a checkpoint keeps of a standing."""
    return bytes(msgpack.packb(encode_message(standing)))
