"""Serve the control socket from the daemon's event loop.

Only the owner may speak: the socket is 0600 in a 0700 folder, and every connection's peer uid is checked as well
(SO_PEERCRED), in case the folder was opened up later. Handlers answer from memory; one that waits has the request's
deadline around it. What is sent is bounded, how long it may take to be sent is too.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from node.control.messages import (
    LENGTH,
    REQUEST_BYTES_MAX,
    ControlFailure,
    Request,
    Scalar,
    body_length_untrusted,
    pack_failure,
    pack_result,
    request_untrusted,
)
from node.errors import BusyError, ControlError, NodeError, PermissionRefusedError
from protocols.errors import RemoteProtocolError

log = logging.getLogger(__name__)

Params: TypeAlias = Mapping[str, Scalar]
Handler: TypeAlias = Callable[[Params], Awaitable[Any]]

CONNECTIONS_MAX: Final = 32
"""A few terminals and a monitoring agent; more is a mistake in a script."""
IDLE_S: Final = 60.0
"""An open connection that asks nothing for a minute is closed; `status --watch` asks every second."""
TRANSFER_S: Final = 5.0
"""To receive one request, or to send one answer."""
HANDLER_S: Final = 600.0
"""The longest command, `export` of a large model, writes a file; anything else takes milliseconds."""
_UCRED: Final = struct.Struct("3i")


def listen(path: Path) -> trio.SocketListener:
    """Bind the control socket, 0600, replacing one left by a daemon that was killed.

    The caller holds the state folder's lock; a socket in a shared runtime folder that still answers is somebody's.

    Raises:
      BusyError: another daemon answers there.
      PermissionRefusedError: the folder does not let us.
    """
    _refuse_living_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        # The mode applies from the first moment: there is no instant in which others could connect.
        previous = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(previous)
        sock.listen(CONNECTIONS_MAX)
    except OSError as error:
        sock.close()
        raise PermissionRefusedError(
            f"cannot create the control socket {path}: {error.strerror}",
            "choose another --runtime-dir",
        ) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _refuse_living_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise BusyError(
        f"another murmura daemon answers at {path}",
        "give this one its own folder with --state-dir, or stop the other with `murmura drain`",
    )


class ControlServer:
    """Answers requests by a table of handlers, name -> async function of the parameters."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._connections = 0

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._converse, [listener], handler_nursery=nursery)

    async def _converse(self, stream: trio.SocketStream) -> None:
        """Serve one connection. Nothing that happens on it may end the daemon."""
        async with stream:
            if peer_uid(stream.socket) != os.geteuid() or self._connections >= CONNECTIONS_MAX:
                return
            self._connections += 1
            try:
                with suppress(
                    trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError
                ):
                    while await self._exchange(stream):
                        pass
            finally:
                self._connections -= 1

    async def _exchange(self, stream: trio.SocketStream) -> bool:
        """Answer one request. False when the connection should be closed."""
        head = bytearray()
        with trio.move_on_after(IDLE_S):
            head += await stream.receive_some(LENGTH.size)
        if not head:
            return False
        try:
            with trio.fail_after(TRANSFER_S):
                head += await _receive(stream, LENGTH.size - len(head))
                length = body_length_untrusted(bytes(head), REQUEST_BYTES_MAX)
                request = request_untrusted(await _receive(stream, length))
        except EOFError:
            return False
        except RemoteProtocolError as error:
            failure = ControlFailure(code="bad-request", reason=error.reason)
            await _send(stream, pack_failure(failure))
            return False  # what follows on this connection cannot be told apart from the rest of the bad request
        await _send(stream, await self._answer(request))
        return True

    async def _answer(self, request: Request) -> bytes:
        handler = self._handlers.get(request.method)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            reason = "the daemon has no such command"
            return pack_failure(
                ControlFailure(code="unknown-method", reason=reason, hint=f"known: {known}")
            )
        try:
            with trio.fail_after(HANDLER_S):
                return pack_result(await handler(request.params))
        except ControlError as error:
            failure = ControlFailure(code=error.code, reason=error.reason, hint=error.hint)
        except NodeError as error:
            failure = ControlFailure(code="failed", reason=error.reason, hint=error.hint)
        except trio.TooSlowError:
            failure = ControlFailure(code="too-slow", reason=f"not done within {HANDLER_S:g} s")
        except Exception:
            log.exception("control command failed: method=%s", request.method)
            failure = ControlFailure(
                code="failed", reason="a bug in the daemon; its log has the details"
            )
        return pack_failure(failure)


def peer_uid(sock: trio.socket.SocketType) -> int:
    """Who is at the other end, by the kernel's word."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return int(uid)


async def _receive(stream: trio.SocketStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)


async def _send(stream: trio.SocketStream, data: bytes) -> None:
    with trio.fail_after(TRANSFER_S):
        await stream.send_all(data)
