"""The world failed: what failed, why, and what a person can do next.

Bugs are `LocalProtocolError`, a peer's misbehaviour is `RemoteProtocolError` (protocols.errors); these are the rest.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

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


def file_error(
    error: OSError,
    sentence: str,
    hint: str = "",
    *,
    missing: type[NodeError] = PermissionRefusedError,
) -> NodeError:
    """Turn what the kernel said of a file into an error with the exit code that fits: out of something, or not allowed.

    Args:
      sentence: what could not be done, e.g. "cannot write /x"; the reason is put behind it.
      missing: what it is when there is no such file: for one that a person has named, a mistake in the settings.
    """
    reason = f"{sentence}: {error.strerror or error}"
    if error.errno in _OUT_OF:
        return BusyError(reason, _OUT_OF[error.errno])
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return missing(reason, hint)
    return PermissionRefusedError(reason, hint)


_OUT_OF: Final = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room: the quota there is used up",
    errno.EMFILE: "close something, or raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close something: this machine has no file descriptors left",
    errno.ENOMEM: "close something: this machine has no memory left",
    errno.EAGAIN: "close something: no further process may be started",
}
"""What a restart may help against, once somebody has made room."""


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
