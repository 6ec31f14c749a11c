"""The first frame of a stream, and what a node says when it does not do what it was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from protocols.ids import RunID
from protocols.schema import Range, Size

SOFTWARE_VERSION: Final = "0.1.0"
WIRE_VERSION: Final = 1

ErrorCode: TypeAlias = Literal[
    "bad-request",  # the request broke the protocol; a retry will not help
    "busy",  # the queue is full; try later or elsewhere
    "draining",  # this node is leaving; go elsewhere
    "not-here",  # this node does not host that stage or expert
    "wrong-run",
    "wrong-version",
    "wrong-key",  # a private run, and the caller did not prove that it holds the run key
    "step-passed",  # the step is committed already
    "step-ahead",  # this node has not reached that step yet
    "overtaken",  # a newer attempt or lease of the same microbatch has been seen
    "diverged",  # the numbers are too large to go on with: nobody's fault
    "failed",  # this node's own fault
]

Reason = Annotated[str, Size(0, 500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What the opener of a stream says first."""

    wire_version: Annotated[int, Range(0, 65535)] = WIRE_VERSION
    software: Annotated[str, Size(0, 64)] = SOFTWARE_VERSION
    run: RunID | None = None
    """None speaks of no run: asking for public status, or for the list of runs."""
    role: Literal["member", "trainer", "visitor"] = "member"
    proof: Annotated[bytes, Size(0, 64)] = b""
    """HMAC-SHA256 by the run key of a private run over both PeerIDs, the run and the protocol; empty for a public one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to a Hello that is accepted. A refusal is an ErrorReply in an ERROR frame, then the stream closes."""

    wire_version: Annotated[int, Range(0, 65535)] = WIRE_VERSION
    software: Annotated[str, Size(0, 64)] = SOFTWARE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """Why a request was not done: a code for programs and a sentence for people."""

    code: ErrorCode
    reason: Reason
    retry_after_s: Annotated[float, Range(0.0, 3600.0)] | None = None
