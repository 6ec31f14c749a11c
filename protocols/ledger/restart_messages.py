"""What nodes tell each other when all of them are back from the disk. One-way casts of the service `restart`.

Each may be lost, repeated or late: a node repeats what it has to say until it is in the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from protocols.errors import RemoteProtocolError
from protocols.ledger.view import Ballot, Digest, Index, Record
from protocols.schema import Natural, Range, SchemaError, Size, decode, encode

CLAIMS_MAX: Final = 64
"""Checkpoints that one node names: far more than it keeps of one part."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A checkpoint on a node's disk."""

    stage: Annotated[int, Range(0, 1023)]
    step: Index
    epoch: Natural
    """Of the record that committed the step."""
    lineage: Digest
    """Of that record: equal only where the whole history before is."""
    root: Digest
    """Hash of the file: replicas have equal ones."""


@dataclass(frozen=True, slots=True)
class Back:
    """I am back, I am in no run yet, and this is what I have."""

    incarnation: Natural
    newest: Record
    """The last record I know: its members decide how the run goes on."""
    claims: Annotated[tuple[Claim, ...], Size(0, CLAIMS_MAX)]
    may_vote: bool = True
    """False: it cannot read what it has voted, so it does not count for a majority."""


@dataclass(frozen=True, slots=True)
class RestartPrepare:
    """Promise me to take no lower ballot for this epoch."""

    epoch: Natural
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class RestartPromise:
    epoch: Natural
    ballot: Ballot
    accepted_at: Ballot | None
    accepted: Record | None
    """Under the highest ballot so far. It may have been decided, so it has to be proposed again."""


@dataclass(frozen=True, slots=True)
class RestartAccept:
    """Accept this record as the first of its epoch."""

    epoch: Natural
    ballot: Ballot
    record: Record


@dataclass(frozen=True, slots=True)
class RestartAccepted:
    epoch: Natural
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class RestartRefused:
    epoch: Natural
    promised: Ballot


@dataclass(frozen=True, slots=True)
class Decided:
    """An epoch begins with this record. Who is named in it, in this incarnation, goes on from its disk."""

    record: Record


@dataclass(frozen=True, slots=True)
class Running:
    """Answer to Back: the run goes on, and this is its newest record. Begin with it if it names you, else join."""

    record: Record


RestartMessage: TypeAlias = (
    Back | RestartPrepare | RestartPromise | RestartAccept | RestartAccepted | RestartRefused | Decided | Running
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GoBack:
    """The lead to all members: a stage's state is lost, and is on disks; end this life and go back to yours, as I do."""

    index: Index
    """Of the newest record: members that know a newer one are in a run that went on."""


RestartCast: TypeAlias = RestartMessage | GoBack
"""What may come: those who are back talk among themselves; the last is for those who are not."""

_TAGS: Final[dict[str, type[Any]]] = {
    "back": Back, "prepare": RestartPrepare, "promise": RestartPromise, "accept": RestartAccept,
    "back to disk": GoBack, "accepted": RestartAccepted, "refused": RestartRefused, "decided": Decided, "running": Running,
}  # fmt: skip
_TAG_OF: Final = {shape: tag for tag, shape in _TAGS.items()}


def encode_restart(message: RestartCast) -> dict[str, Any]:
    """Return the plain form: {"tag": ..., "body": {...}}."""
    return {"tag": _TAG_OF[type(message)], "body": encode(message)}


def decode_restart_untrusted(data: Any) -> RestartCast:
    """Check and build one message. Raises RemoteProtocolError only."""
    if not isinstance(data, dict) or data.keys() != {"tag", "body"}:
        raise RemoteProtocolError("a restart message is a map of tag and body")
    shape = _TAGS.get(data["tag"]) if isinstance(data["tag"], str) else None
    if shape is None:
        raise RemoteProtocolError("unknown restart message")
    try:
        message: RestartCast = decode(shape, data["body"])
    except SchemaError as error:
        raise RemoteProtocolError(f"bad {data['tag']} message: {error.problem}") from error
    return message
