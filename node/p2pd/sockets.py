"""Unix sockets at speed: every libp2p stream is one of them.

trio's own SocketStream goes through the event loop once per system call. Here a call that can proceed does, and the
loop gets a turn when it cannot, or after `TURN_BYTES`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path
from typing import Final

import trio

from protocols.ids import PeerID
from protocols.ports import Buffer, StreamClosedError

TURN_BYTES: Final = 1 << 20
"""Moved without letting other tasks run: 0.2 to 0.5 ms."""

SEND_BUFFER_BYTES: Final = 1 << 20
"""Asked of the kernel, which grants at most net.core.wmem_max; more of it means fewer wake-ups per megabyte."""

_BACKLOG_RETRY_S: Final = 0.01


class UnixStream:
    """One connected unix stream socket. Raises StreamClosedError for every way it can end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._sock = sock

    async def send_all(self, data: Buffer) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
        turn = 0
        while True:
            try:
                sent = self._sock.send(rest)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_writable)
                turn = 0
                continue
            except OSError as error:
                raise _closed(error) from error
            if sent == len(rest):
                return
            rest = rest[sent:]
            turn = await _take_turns(turn + sent)

    async def receive_some(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._sock.recv(bytes_max)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
            except OSError as error:
                raise _closed(error) from error

    async def receive_into(self, buffer: memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        turn = 0
        while len(buffer):
            try:
                received = self._sock.recv_into(buffer)
            except BlockingIOError:
                await self._wait(trio.lowlevel.wait_readable)
                turn = 0
                continue
            except OSError as error:
                raise _closed(error) from error
            if not received:
                raise StreamClosedError("the stream ended early")
            buffer = buffer[received:]
            turn = await _take_turns(turn + received)

    def readable(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def detach(self) -> socket.socket:
        """Return the socket, to be wrapped anew; this object is of no use any more."""
        return self._sock

    async def aclose(self) -> None:
        """Close at once, without a checkpoint, so that it is safe in a cancelled task."""
        self.close()

    def close(self) -> None:
        """Do what `aclose` does, for callers that are not async."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()

    async def _wait(self, wait: object) -> None:
        if self._sock.fileno() < 0:
            raise StreamClosedError("the stream is closed on this side")
        try:
            await wait(self._sock)  # type: ignore[operator]
        except trio.ClosedResourceError as error:
            raise StreamClosedError("the stream is closed on this side") from error


class P2pdStream(UnixStream):
    """Implements protocols.ports.Stream over the socket that p2pd pipes to the peer."""

    def __init__(self, sock: socket.socket, peer: PeerID, origin: str = "") -> None:
        super().__init__(sock)
        self._peer = peer
        self._origin = origin

    @property
    def origin(self) -> str:
        return self._origin

    @property
    def peer(self) -> PeerID:
        return self._peer


async def connect(path: Path) -> UnixStream:
    """Connect to a listening unix socket. Raises OSError. Waits while the listener's backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(str(path))
                return UnixStream(sock)
            except BlockingIOError:
                # The kernel offers nothing to wait on here.
                await trio.sleep(_BACKLOG_RETRY_S)
    except BaseException:
        sock.close()
        raise


def listen(path: Path) -> socket.socket:
    """Listen on a unix socket that only this user can reach, replacing what a dead process left."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        sock.setblocking(False)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(1024)
        stack.pop_all()
    return sock


async def _take_turns(moved: int) -> int:
    """Let other tasks run once enough has been moved; return what counts for the next turn."""
    if moved < TURN_BYTES:
        return moved
    await trio.lowlevel.checkpoint()
    return 0


def _closed(error: OSError) -> StreamClosedError:
    if error.errno == errno.EBADF:
        return StreamClosedError("the stream is closed on this side")
    return StreamClosedError(f"the stream broke: {error.strerror}")
