"""What peers of a gossip run say to each other. Everything here is small; tensors travel in the body of a call.

| service | request, body | answer, body |
|---|---|---|
| `gossip` | Push, the part's numbers as one flat tensor | PushAnswer |
| `gossip` | OfferWanted | ModelOffer (the bytes are then fetched as a snapshot, by their root) |
| `gossip` (cast) | Leaving | |

Tags are part of the wire form: adding a message adds a tag, an old tag never changes its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID, RunID
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

Digest = Annotated[bytes, Size(32, 32)]
PARTS_MAX: Final = 100
PartIndex = Annotated[int, Range(0, PARTS_MAX - 1)]

Verdict: TypeAlias = Literal[
    "taken",
    "unknown",  # the directory has not named the sender to us (yet)
    "no-neighbour",  # it has, but the graph as we see it has no such edge
    "old",  # a model of the same or a later sequence was here before
    "non-finite",
    "too-often",  # the sender replaces its models faster than anybody could use them
    "finished",  # we have trained all our batches
    "draining",
    "bad",  # another layout or part than the run's: the sender is to blame
]


@dataclass(frozen=True, slots=True)
class Push:
    """A part of the sender's model. The run is not named here: the stream's handshake did."""

    epoch: Natural
    """Rises whenever the sender's model did not follow from the one before: a start, a fetched model, a roll-back."""
    sequence: Natural
    """Which snapshot; rises."""
    part: PartIndex
    layout: Digest
    """Hash of the model's tensor names, shapes and dtypes, and how they are cut in parts."""
    trained: Natural
    """Batches behind this model."""
    averages: Natural

    @property
    def age(self) -> tuple[int, int]:
        """Of two models of one sender the one with the larger is the newer."""
        return self.epoch, self.sequence


@dataclass(frozen=True, slots=True)
class PushAnswer:
    """What became of a push."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class OfferWanted:
    """Newcomer -> neighbour: which model could I start from?"""


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model to start from."""

    epoch: Natural
    sequence: Natural
    layout: Digest
    trained: Natural
    averages: Natural
    """0 also when the peer has no model yet."""
    root: Annotated[bytes, Size(0, 32)]
    """Of the snapshot's manifest; empty when there is nothing to fetch."""
    signature: Annotated[bytes, Size(0, 64)]
    """Ed25519 by this peer over `signed_bytes`: who spread a bad model can be named to others."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Peer -> neighbours: I leave; take somebody else."""


Message: TypeAlias = Push | PushAnswer | OfferWanted | ModelOffer | Leaving
_TAGS: Final[dict[str, type[Message]]] = {
    "push": Push,
    "answer": PushAnswer,
    "offer-wanted": OfferWanted,
    "offer": ModelOffer,
    "leaving": Leaving,
}
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def signed_bytes(run: RunID, peer: PeerID, offer: ModelOffer) -> bytes:
    """Return what the signature of an offer covers: every field but itself, the run and who offers."""
    fields = [offer.epoch, offer.sequence, offer.layout, offer.trained, offer.averages, offer.root]
    return bytes(msgpack.packb(["murmura gossip model", bytes(run), bytes(peer), *fields]))


def encode_message(message: Message) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_message_untrusted(data: Any) -> Message:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("a gossip message is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown gossip message")
    try:
        message: Message = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message
