"""The world failed: what failed, why, and what a person can do next.

Bugs are `LocalProtocolError`, a peer's misbehaviour is `RemoteProtocolError` (protocols.errors); these are the rest.
"""

from __future__ import annotations

from typing import ClassVar

from node import exit_codes


class NodeError(Exception):
    """A failure a person can act on.

    Args:
      reason: what failed and why, one sentence.
      hint: the next thing to do, ideally a command; empty when there is none.
    """

    exit_code: ClassVar[int] = exit_codes.FAILED
    retryable: ClassVar[bool] = False
    """True when doing the same again later may work without anybody changing anything."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason if not hint else f"{reason}\n  {hint}")
        self.reason = reason
        self.hint = hint


class ConfigError(NodeError):
    """Settings, a run file or an invite are wrong. Restarting never helps."""

    exit_code = exit_codes.CONFIG


class IdentityTakenError(ConfigError):
    """Another node, which started before this one, runs with the same identity."""

    def __init__(self, peer: object, path: object) -> None:
        super().__init__(
            f"another node runs with this node's identity ({peer}) and started before it: this one leaves",
            f"an identity is one node's: stop the other one, or move {path} away to get a new identity here",
        )


class PermissionRefusedError(NodeError):
    """A file or folder cannot be used as it is: not writable, or open to others."""

    exit_code = exit_codes.NO_PERMISSION


class BusyError(NodeError):
    """Something we need is taken just now: a port, the state folder of another daemon."""

    exit_code = exit_codes.TRY_AGAIN
    retryable = True


class NotRunningError(NodeError):
    """No daemon answers on the control socket."""

    exit_code = exit_codes.NOT_RUNNING
    retryable = True


class UnavailableError(NodeError):
    """None of the addresses answered."""

    exit_code = exit_codes.UNAVAILABLE
    retryable = True


class ControlError(NodeError):
    """The daemon answered a command with an error; `code` is stable for scripts."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(reason, hint)
        self.code = code
