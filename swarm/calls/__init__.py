"""Calls between nodes: requests with one answer and one-way casts, over the Host port. Needs trio, not torch.

Specified in protocols/README.md, sections "Frames", "Handshake" and "Calls".
"""

from typing import Final

from protocols.errors import RemoteProtocolError
from protocols.ports import PeerUnreachableError, StreamClosedError
from swarm.calls.caller import Caller, CallerStatistics
from swarm.calls.guard import Guard, GuardLimits, Pace
from swarm.calls.messages import Answer, CallError, CallTimeoutError, Incoming, Refusal, WireTensor
from swarm.calls.rates import Rates
from swarm.calls.service import Service, ServiceStatistics
from swarm.calls.traffic import Traffic

CALL_FAILURES: Final = (
    CallError, CallTimeoutError, PeerUnreachableError, RemoteProtocolError, StreamClosedError,
)  # fmt: skip
"""Every way in which a call, or what it was answered, can come to nothing for a reason that is not ours."""

__all__ = [
    "CALL_FAILURES",
    "Answer",
    "CallError",
    "CallTimeoutError",
    "Caller",
    "CallerStatistics",
    "Guard",
    "GuardLimits",
    "Incoming",
    "Pace",
    "PeerUnreachableError",
    "Rates",
    "Refusal",
    "Service",
    "ServiceStatistics",
    "StreamClosedError",
    "Traffic",
    "WireTensor",
]
