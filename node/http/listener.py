"""Connections that cannot hold the node: so many at once, and none that is written to without end."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

CONNECTIONS_MAX: Final = 64
"""Some pages, some scrapers, a supervisor. One more closes the oldest: whoever asks for health gets in, whoever sits there."""
SEND_S: Final = 5.0
"""For one piece of an answer. The server library sends under a shield: without a deadline of ours, a client that never
reads would keep the node from leaving."""

_RECEIVED_MAX: Final = 4096


class BoundedListener(trio.abc.Listener["DeadlineStream"]):
    """Accepts from a listener, and closes the oldest connection when there are too many."""

    def __init__(
        self, inner: trio.SocketListener, *, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._inner = inner
        self._connections_max = connections_max
        self._open: OrderedDict[DeadlineStream, None] = OrderedDict()
        self.closed_early = 0
        """Connections that had to make room."""

    @property
    def connections(self) -> int:
        return len(self._open)

    async def accept(self) -> DeadlineStream:
        stream = DeadlineStream(await self._inner.accept(), self._open)
        self._open[stream] = None
        if len(self._open) > self._connections_max:
            self.closed_early += 1
            await trio.aclose_forcefully(next(iter(self._open)))
        return stream

    async def aclose(self) -> None:
        """Stop listening, and close what is open, read or not."""
        await self._inner.aclose()
        for stream in list(self._open):
            await trio.aclose_forcefully(stream)


class DeadlineStream(trio.abc.HalfCloseableStream):
    """A connection. Sending to one that does not read ends it."""

    def __init__(
        self, inner: trio.SocketStream, registry: OrderedDict[DeadlineStream, None]
    ) -> None:
        self._inner = inner
        self._registry = registry
        self.socket = inner.socket
        """The server library asks it for both addresses."""

    async def send_all(self, data: bytes | memoryview) -> None:
        with trio.move_on_after(SEND_S) as scope:
            await self._inner.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self)
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        # The library closes from a task that it cancels meanwhile: without the shield it never gets to closing.
        with trio.CancelScope(shield=True):
            await self._inner.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        # In small pieces: the library bounds what it has of an unfinished request only between two of them.
        return await self._inner.receive_some(min(max_bytes or _RECEIVED_MAX, _RECEIVED_MAX))

    async def aclose(self) -> None:
        self._registry.pop(self, None)
        await self._inner.aclose()
