"""What goes in and out of a call, and how a call fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.replies import ErrorCode, ErrorReply, Hello


@dataclass(frozen=True, slots=True)
class WireTensor:
    """One tensor as bytes; swarm.tensors turns it into a torch tensor and back without a copy."""

    spec: TensorSpec
    data: memoryview
    """C order, little-endian, format "B", `spec.byte_count` long. A received one is writable and owned by the receiver."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request, or one cast, as a Service hands it to its `answer`."""

    peer: PeerID
    hello: Hello
    message: Any
    """Plain data, still to be checked by `schema.decode`."""
    tensors: tuple[WireTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gives back."""

    message: Any = None
    """Plain data (`schema.encode` of a dataclass); on the caller's side still to be checked."""
    tensors: Sequence[WireTensor] = ()


class Refusal(Exception):
    """Raised by an `answer` to say no: the caller gets it as a CallError."""

    def __init__(self, code: ErrorCode, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.reply = ErrorReply(code=code, reason=reason[:500], retry_after_s=retry_after_s)


class CallError(Exception):
    """The peer answered that it will not or cannot. `reason` is the peer's text: for people, never parsed."""

    def __init__(
        self, peer: PeerID, code: ErrorCode, reason: str, retry_after_s: float | None = None
    ) -> None:
        # Escaped, since this message ends up in logs and the reason comes from the network.
        super().__init__(f"peer {peer.short} answered {code}: {reason!a}")
        self.peer = peer
        self.code: ErrorCode = code
        self.reason = reason
        self.retry_after_s = retry_after_s


class CallTimeoutError(Exception):
    """No answer within the deadline. The request may or may not have been carried out."""

    def __init__(self, peer: PeerID, service: str, deadline_s: float) -> None:
        super().__init__(f"peer {peer.short} did not answer on {service} within {deadline_s:.3g} s")
        self.peer = peer
        self.service = service
        self.deadline_s = deadline_s
