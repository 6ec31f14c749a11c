"""GossipSub subscriptions that outlive a restart of p2pd."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final

import trio

from node.p2pd.client import ControlClient, P2pdGoneError, P2pdRefusedError, read_notice
from protocols.ids import PeerID
from protocols.ports import Notice, StreamClosedError

log = logging.getLogger(__name__)

NOTICES_MAX: Final = 64
BYTES_MAX: Final = 8 << 20
"""Kept for a reader that is late: the newest that fit both bounds."""
_RETRY_S: Final = 0.2


class Inbox:
    """Notices of one subscription that its reader has not taken yet."""

    def __init__(self) -> None:
        self._notices: deque[Notice] = deque()
        self._byte_count = 0
        self._arrived = trio.lowlevel.ParkingLot()
        self.lost = 0
        self.subscribed = trio.Event()

    def put(self, notice: Notice) -> None:
        """Add one, dropping the oldest where there is no room."""
        self._notices.append(notice)
        self._byte_count += len(notice.data)
        while len(self._notices) > NOTICES_MAX or (
            self._byte_count > BYTES_MAX and len(self._notices) > 1
        ):
            self._byte_count -= len(self._notices.popleft().data)
            self.lost += 1
        self._arrived.unpark_all()

    async def read(self) -> AsyncGenerator[Notice, None]:
        """Yield notices as they come, for ever."""
        while True:
            await trio.lowlevel.checkpoint()
            while not self._notices:
                await self._arrived.park()
            notice = self._notices.popleft()
            self._byte_count -= len(notice.data)
            yield notice


async def listen_to_topic(
    client: ControlClient,
    up: Callable[[], trio.Event],
    own_id: PeerID,
    topic: str,
    inbox: Inbox,
    scope: trio.CancelScope,
) -> None:
    """Fill `inbox` until `scope` is cancelled; its `subscribed` is set once p2pd has confirmed.

    Args:
      up: returns the event that is set while p2pd answers.
      own_id: what we published ourselves is left out.
    """
    with scope:
        while True:
            await up().wait()
            try:
                stream = await client.subscribe(topic)
            except (P2pdGoneError, P2pdRefusedError) as error:
                log.warning("subscription failed, trying again: topic=%s reason=%s", topic, error)
                await trio.sleep(_RETRY_S)
                continue
            inbox.subscribed.set()
            try:
                while True:
                    notice = await read_notice(stream)
                    if notice.peer != own_id:
                        inbox.put(notice)
            except StreamClosedError:
                log.debug("subscription ended, renewing it: topic=%s", topic)
                await trio.sleep(_RETRY_S)
            finally:
                stream.close()
