"""What peers ask of each other about the checkpoint that their run begins from: the service `start`.

The call says nothing. The files themselves are parts of the service `state`, under the name `start/<part>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from protocols.errors import RemoteProtocolError
from protocols.schema import Natural, Range, SchemaError, Size, decode
from protocols.state_calls import PartName
from swarm.state.checkpoint import HexDigest
from swarm.state.manifest import TENSORS_MAX, NamedSpec

START_SERVICE: Final = "start"
FILES_MAX: Final = 3000
"""More would not go into one answer: of a run with more experts no checkpoint can be fetched."""


@dataclass(frozen=True, slots=True)
class StartFile:
    """One file of the checkpoint, as its manifest has it."""

    part: PartName
    epoch: Natural
    sha256: HexDigest
    written_unix_s: Annotated[float, Range(0.0)]
    tensors: Annotated[tuple[NamedSpec, ...], Size(0, TENSORS_MAX)]


@dataclass(frozen=True, slots=True)
class StartReply:
    """Which files of the checkpoint are here."""

    files: Annotated[tuple[StartFile, ...], Size(0, FILES_MAX)]


def start_reply_untrusted(data: Any) -> StartReply:
    """Check and build a reply. Raises RemoteProtocolError only."""
    try:
        return decode(StartReply, data)
    except SchemaError as error:
        raise RemoteProtocolError(f"not a StartReply: {error.problem}") from error
