"""What members ask of each other while they exchange vectors: calls with one answer each, under the service `averaging`.

| request, tensors | answer, tensors |
|---|---|
| ChunkCall, the caller's numbers of one chunk of the answerer's part | nothing, the mean of that chunk over all members |
| MeanCall | nothing, one chunk of a finished mean, as its owner encoded it |

A chunk is sent as its codec says (`swarm.averaging.codecs`), both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from protocols.averaging.messages import Attempt, Digest, MemberIndex
from protocols.errors import RemoteProtocolError
from protocols.schema import Range, SchemaError, decode, encode

ChunkIndex = Annotated[int, Range(0, 1 << 20)]


@dataclass(frozen=True, slots=True)
class ChunkCall:
    """Add this to your part, and give me the mean."""

    round_id: Digest
    exchange: Attempt
    chunk: ChunkIndex
    """Of the answerer's part."""


@dataclass(frozen=True, slots=True)
class MeanCall:
    """Give me a chunk of the mean that you hold."""

    round_id: Digest
    exchange: Attempt
    part: MemberIndex
    """Whose part, by its place in the exchange's group."""
    chunk: ChunkIndex


CallMessage: TypeAlias = ChunkCall | MeanCall
_TAGS: Final[dict[str, type[CallMessage]]] = {"chunk": ChunkCall, "mean": MeanCall}
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def encode_call(message: CallMessage) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def is_call(data: Any) -> bool:
    """Tell whether this claims to be one of these, and not a message of the core."""
    return isinstance(data, dict) and isinstance(data.get("tag"), str) and data["tag"] in _TAGS


def decode_call_untrusted(data: Any) -> CallMessage:
    """Check and build one call. Raises RemoteProtocolError only."""
    if not is_call(data) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("an averaging call is a map of tag and body")
    try:
        message: CallMessage = decode(_TAGS[data["tag"]], data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} call: {error.problem}") from error
    return message
