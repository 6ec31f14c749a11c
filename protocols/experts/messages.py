"""What nodes ask of each other's experts, and what hosts state about them in the directory. Everything here is small.

| service | request, body | answer, body |
|---|---|---|
| `expert` | Forward, x | Output, y |
| `expert` | Backward, x and grad_y | Stepped, grad_x |
| `expert` | Average, the replica's parameters (n,) | Averaged, the mean (n,) |
| `experts` | Keep | Kept (the keeper has fetched the snapshot by then) |
| `experts` | SnapshotWanted | Snapshots |
| `experts` | HandOver | Taken |
| `experts` | ReplicaWanted | Taken |
| `experts` | ReplicaOver | Alive |
| `experts` | Probe | Alive |

x, y and their gradients are (rows, width) in the expert's dtype. Tags are part of the wire form: adding a message adds a tag,
an old tag never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.experts.uid import SIZE_MAX, UID_CHARACTERS_MAX, ExpertUID
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID, RunID
from protocols.records import VALUE_BYTES_MAX
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

EXPERT_SERVICE: Final = "expert"
EXPERTS_SERVICE: Final = "experts"
STATED_MAX: Final = 256
"""Coordinates that one host may state under one prefix: what fits into a directory record."""
HOSTS_MAX: Final = 8
"""Former hosts of one expert that a node remembers."""
REPLICAS_STATED_MAX: Final = 64
"""Replicas that one host may name under one prefix."""
REPLICAS_MAX: Final = 4
"""Of one expert."""

UIDText: TypeAlias = Annotated[str, Size(1, UID_CHARACTERS_MAX)]
Epoch: TypeAlias = Annotated[int, Range(0, (1 << 53) - 1)]
"""How often the expert has changed hands, the first host included; 0 where nobody knows."""
Version: TypeAlias = Annotated[int, Range(0, (1 << 53) - 1)]
"""Optimizer steps. Whoever goes on from the largest can still count on, and say so in 64 bits."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Apply the expert."""

    uid: UIDText
    epoch: Epoch
    """The newest that the caller knows: a host of an older one finds out that it has been replaced."""


@dataclass(frozen=True, slots=True)
class Output:
    epoch: Epoch
    version: Natural
    """Optimizer steps behind the parameters that made y."""


@dataclass(frozen=True, slots=True)
class Backward:
    """Return the gradient for x, and step."""

    uid: UIDText
    epoch: Epoch
    version: Natural
    """Of the Output that grad_y is for."""


@dataclass(frozen=True, slots=True)
class Stepped:
    epoch: Epoch
    version: Natural


@dataclass(frozen=True, slots=True)
class Average:
    """Replica -> host: average these parameters with yours."""

    uid: UIDText
    epoch: Epoch
    rows: Natural
    """That the replica has trained on since it last averaged."""


@dataclass(frozen=True, slots=True)
class Averaged:
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class SnapshotOffer:
    """An expert's state, as its host signed it. Anybody may pass it on; the bytes are fetched by their root."""

    uid: UIDText
    epoch: Epoch
    version: Version
    root: Annotated[bytes, Size(32, 32)]
    """Of the snapshot's manifest."""
    host: PeerID
    """Who had the expert at that epoch, and signed."""
    signature: Annotated[bytes, Size(64, 64)]

    @property
    def age(self) -> tuple[int, int]:
        """Of two offers of one expert the one with the larger is the newer."""
        return self.epoch, self.version


@dataclass(frozen=True, slots=True)
class Keep:
    """Host -> keeper: fetch this from me and keep it."""

    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class Kept:
    kept: bool


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """What is the newest that you keep of this expert?"""

    uid: UIDText


@dataclass(frozen=True, slots=True)
class Seen:
    """The directory named this host for the expert."""

    epoch: Epoch
    host: PeerID


@dataclass(frozen=True, slots=True)
class Snapshots:
    """None, or the newest."""

    offer: SnapshotOffer | None
    hosts: Annotated[tuple[Seen, ...], Size(0, HOSTS_MAX)] = ()
    """That this node has seen: its word on who may have signed what others offer."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Host -> successor: take this expert; I do not step it any more."""

    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class Taken:
    taken: bool
    epoch: Epoch = 0
    """In which the successor hosts the expert; 0 of a replica, or when it is not taken."""


@dataclass(frozen=True, slots=True)
class ReplicaWanted:
    """Host -> a node with room: fetch this from me, and answer for the expert as well."""

    offer: SnapshotOffer


@dataclass(frozen=True, slots=True)
class ReplicaOver:
    """Host -> replica: you are let go. Replica -> host: I have stopped."""

    uid: UIDText
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Probe:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class Alive:
    pass


Message: TypeAlias = (
    Forward
    | Output
    | Backward
    | Stepped
    | Average
    | Averaged
    | Keep
    | Kept
    | SnapshotWanted
    | Snapshots
    | HandOver
    | Taken
    | ReplicaWanted
    | ReplicaOver
    | Probe
    | Alive
)
_TAGS: Final[dict[str, type[Message]]] = {
    "forward": Forward,
    "output": Output,
    "backward": Backward,
    "stepped": Stepped,
    "average": Average,
    "averaged": Averaged,
    "keep": Keep,
    "kept": Kept,
    "snapshot-wanted": SnapshotWanted,
    "snapshots": Snapshots,
    "hand-over": HandOver,
    "taken": Taken,
    "replica-wanted": ReplicaWanted,
    "replica-over": ReplicaOver,
    "probe": Probe,
    "alive": Alive,
}
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def encode_message(message: Message) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_message_untrusted(data: Any) -> Message:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("a message about experts is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown message about experts")
    try:
        message: Message = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message


def uid_untrusted(text: str) -> ExpertUID:
    """Parse an expert's name that came from a peer. Raises RemoteProtocolError only."""
    try:
        return ExpertUID.from_text(text)
    except ValueError as error:
        raise RemoteProtocolError(f"not an expert: {error}") from error


def signed_bytes(run: RunID, offer: SnapshotOffer) -> bytes:
    """Return what the signature of an offer covers: the run and every field but itself."""
    fields = [offer.uid, offer.epoch, offer.version, offer.root, bytes(offer.host)]
    return bytes(msgpack.packb(["murmura expert snapshot", bytes(run), *fields]))


# --- what hosts state in the directory ---


@dataclass(frozen=True, slots=True)
class Stated:
    """One line of a host's record under a prefix."""

    coordinate: int
    """The next one. Something of this host is alive below it."""
    epoch: int
    """Of the expert, where the coordinate is the last one; else 0."""
    replicas: tuple[PeerID, ...] = ()
    """Who answers for the expert as well, by the word of its host."""


def statement_bytes(stated: Iterable[Stated]) -> bytes:
    """Return the value of a directory record: the first STATED_MAX coordinates, and of their replicas what there is room for."""
    lines = sorted(stated, key=lambda line: line.coordinate)[:STATED_MAX]
    experts = [(line.coordinate, line.epoch) for line in lines]
    named = [(line.coordinate, bytes(peer)) for line in lines for peer in line.replicas]
    named = named[:REPLICAS_STATED_MAX]
    while True:
        statement: dict[str, Any] = {"experts": experts}
        if named:
            statement |= {"of": [of for of, _ in named], "replicas": [peer for _, peer in named]}
        value = bytes(msgpack.packb(statement))
        if len(value) <= VALUE_BYTES_MAX:
            return value
        assert named, "coordinates alone always fit"
        named.pop()


@dataclass(frozen=True, slots=True)
class _Statement:
    experts: Annotated[tuple[Annotated[tuple[Epoch, ...], Size(2, 2)], ...], Size(0, STATED_MAX)]
    of: Annotated[tuple[Epoch, ...], Size(0, REPLICAS_STATED_MAX)] = ()
    """The coordinate of each replica."""
    replicas: Annotated[tuple[PeerID, ...], Size(0, REPLICAS_STATED_MAX)] = ()


def statement_untrusted(value: bytes) -> tuple[Stated, ...]:
    """Read the value of a directory record. Raises RemoteProtocolError only."""
    try:
        statement: _Statement = decode(_Statement, unpack_untrusted(value))
    except SchemaError as error:
        raise RemoteProtocolError(f"not a statement about experts: {error.problem}") from error
    if any(coordinate >= SIZE_MAX for coordinate, _ in statement.experts):
        raise RemoteProtocolError("not a statement about experts: no grid is as large")
    named: dict[int, list[PeerID]] = {}
    for coordinate, peer in zip(statement.of, statement.replicas, strict=False):
        peers = named.setdefault(coordinate, [])
        if peer not in peers and len(peers) < REPLICAS_MAX:
            peers.append(peer)
    return tuple(
        Stated(coordinate, epoch, tuple(named.get(coordinate, ())))
        for coordinate, epoch in statement.experts
    )
