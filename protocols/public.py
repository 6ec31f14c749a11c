"""What a node tells anybody who asks: the services `status` and `run`. Specified in protocols/README.md.

A stranger learns what a volunteer would put on a public page: no addresses of others, no paths, no keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from protocols.errors import RemoteProtocolError
from protocols.ids import RunID
from protocols.run import RUN_BYTES_MAX
from protocols.schema import Natural, Range, SchemaError, Size, decode

STATUS_SERVICE: Final = "status"
RUN_SERVICE: Final = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicStatus:
    """The answer to any request on the `status` service. Of a private run nothing is told to who does not prove its key:
    all is None then, and says only that the node is up.
    """

    software: Annotated[str, Size(0, 64)] | None = None
    state: Annotated[str, Size(0, 32)] | None = None
    """A LifeState; text here, since a later version may know more of them."""
    state_seconds: Annotated[float, Range(0.0)] | None = None
    run: RunID | None = None
    """None before the node knows its run, too."""
    run_name: Annotated[str, Size(0, 64)] | None = None
    mode: Annotated[str, Size(0, 32)] | None = None
    in_run: bool | None = None
    """It takes part in the run already, so nobody else is to begin it."""
    role: Annotated[str, Size(0, 64)] | None = None
    """What it does in the run: `stage 1`, `trains`."""
    step: Natural | None = None
    """Optimizer steps: of the run where peers share them, else its own."""
    peers: Natural | None = None
    time_s: Annotated[float, Range(0.0)] | None = None
    """The node's clock, Unix seconds, so that the asker can tell how far the two are apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Asks the `run` service for the canonical bytes of the run the stream's Hello names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReply:
    """The run as it is hashed; the asker checks the hash before it looks inside."""

    canonical: Annotated[bytes, Size(1, RUN_BYTES_MAX)]


def public_status_untrusted(message: Any) -> PublicStatus:
    """Read a status answer. Raises RemoteProtocolError only."""
    try:
        return decode(PublicStatus, message)
    except SchemaError as error:
        raise RemoteProtocolError(f"a malformed public status: {error}") from error


def run_reply_untrusted(message: Any) -> RunReply:
    """Read a run answer; the bytes inside are still to be checked. Raises RemoteProtocolError only."""
    try:
        return decode(RunReply, message)
    except SchemaError as error:
        raise RemoteProtocolError(f"a malformed run reply: {error}") from error
