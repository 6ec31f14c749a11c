"""Streams that peers open: p2pd makes one connection to our socket for each."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

import trio

from node.p2pd.client import read_stream_info
from node.p2pd.sockets import P2pdStream, UnixStream
from protocols.ids import PeerID
from protocols.ports import StreamClosedError, StreamHandler

log = logging.getLogger(__name__)

STREAMS_MAX: Final = 1024
"""Open at once, over all protocols; the finer limits are swarm.calls.Guard's."""
_INFO_S_MAX: Final = 5.0
_ACCEPT_RETRY_S: Final = 0.1
_NO_DESCRIPTORS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class InboundStreams:
    """Runs the handler of every stream that arrives at one listening socket, over any number of lives of p2pd."""

    def __init__(self, listener: socket.socket, *, heard_from: Callable[[PeerID], None]) -> None:
        """
        Args:
          heard_from: told who opened each stream.
        """
        self._listener = listener
        self._heard_from = heard_from
        self.handlers: dict[str, StreamHandler] = {}
        self.open = 0
        self.refused = 0

    async def accept(self, nursery: trio.Nursery) -> None:
        """Take streams until cancelled; their handlers run in `nursery`."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._listener.fileno())
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                log.error("no file descriptors left for streams of peers: open=%d", self.open)
                await trio.sleep(_ACCEPT_RETRY_S)
            else:
                self._take(UnixStream(sock), nursery)

    def _take(self, stream: UnixStream, nursery: trio.Nursery) -> None:
        if self.open >= STREAMS_MAX:
            self.refused += 1
            stream.close()
            return
        self.open += 1
        nursery.start_soon(self._serve, stream)

    async def _serve(self, raw: UnixStream) -> None:
        protocol = "none yet"
        try:
            with trio.move_on_after(_INFO_S_MAX) as scope:
                peer, protocol, origin = await read_stream_info(raw)
            if not scope.cancelled_caught:
                self._heard_from(peer)
                await self.handlers[protocol](P2pdStream(raw.detach(), peer, origin))
        except StreamClosedError:
            log.debug("stream ended: protocol=%s", protocol)
        except Exception:
            log.exception("stream handler failed: protocol=%s", protocol)
        finally:
            self.open -= 1
            raw.close()
