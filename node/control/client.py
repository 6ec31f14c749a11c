"""Ask a running daemon, from a command that should be over in a tenth of a second: blocking, no event loop."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from node.control.messages import (
    LENGTH,
    RESPONSE_BYTES_MAX,
    ControlFailure,
    Request,
    Scalar,
    body_length_untrusted,
    pack_request,
    response_untrusted,
)
from node.errors import ControlError, NodeError, NotRunningError, PermissionRefusedError
from protocols.errors import RemoteProtocolError

TIMEOUT_S: Final = 5.0
"""The daemon answers from memory in milliseconds; a machine that swaps may need seconds, more means it hangs."""


class ControlClient:
    """One connection to the control socket. Use as a context manager.

    Raises:
      NotRunningError: nobody listens there.
      PermissionRefusedError: the socket belongs to somebody else.
    """

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            self._socket.close()
            raise NotRunningError(
                f"no murmura daemon answers at {path}",
                "start one with `murmura run`, or name its folder with --state-dir",
            ) from error
        except PermissionError as error:
            self._socket.close()
            raise PermissionRefusedError(
                f"the daemon at {path} belongs to another user", "only its owner may speak to it"
            ) from error
        except OSError as error:
            self._socket.close()
            raise NotRunningError(f"cannot reach the daemon at {path}: {error}") from error

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def call(self, method: str, *, timeout_s: float = TIMEOUT_S, **params: Scalar) -> Any:
        """Send one request and return its result.

        Raises:
          ControlError: the daemon refused; carries its code, reason and hint.
          NodeError: no answer within `timeout_s`, or something else than a daemon is there.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(pack_request(Request(method=method, params=dict(params))))
            head = self._receive(LENGTH.size, deadline_s)
            length = body_length_untrusted(head, RESPONSE_BYTES_MAX)
            answer = response_untrusted(self._receive(length, deadline_s))
        except TimeoutError as error:
            raise NodeError(
                f"the daemon at {self._path} did not answer within {timeout_s:g} s",
                "its log may say why",
            ) from error
        except (ConnectionError, EOFError) as error:
            raise NotRunningError(
                f"the daemon at {self._path} went away while it was asked"
            ) from error
        except RemoteProtocolError as error:
            raise NodeError(
                f"what listens at {self._path} is no murmura daemon: {error}"
            ) from error
        if isinstance(answer, ControlFailure):
            raise ControlError(answer.code, answer.reason, answer.hint)
        return answer

    def _receive(self, count: int, deadline_s: float) -> bytes:
        """Read exactly `count` bytes; the deadline holds for all of them together."""
        received = bytearray()
        while len(received) < count:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            chunk = self._socket.recv(min(count - len(received), 1 << 16))
            if not chunk:
                raise EOFError
            received += chunk
        return bytes(received)
