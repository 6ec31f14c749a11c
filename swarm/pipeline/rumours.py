"""A node's voice and ear on its run's topic: what its ledger spreads goes out, what others spread goes to its ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID, RunID
from protocols.ledger.messages import Rumour, decode_rumour_untrusted, encode_rumour
from protocols.ports import Host
from protocols.records import run_key
from swarm.calls import Guard

RUMOURS_TOPIC: Final = "rumours"


class Rumours:
    """Publishes and listens while `run` runs.

    Args:
      heard: told of every rumour that is one, and of who spread it.
    """

    def __init__(
        self, host: Host, run: RunID, guard: Guard, *, heard: Callable[[PeerID, Rumour], None]
    ) -> None:
        self._host = host
        self._topic = run_key(run, RUMOURS_TOPIC)
        self._guard = guard
        self._heard = heard
        self._unsaid: Rumour | None = None
        self._told = trio.Event()

    def spread(self, rumour: Rumour) -> None:
        """Publish this as soon as can be; it replaces one that still waits."""
        self._unsaid = rumour
        self._told.set()

    async def run(self) -> None:
        """Speak and listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                await self._told.wait()
                self._told = trio.Event()
                rumour, self._unsaid = self._unsaid, None
                if rumour is not None:
                    await self._host.publish(self._topic, encode_rumour(rumour))

    async def _listen(self) -> None:
        async with self._host.subscribe(self._topic) as notices:
            async for notice in notices:
                try:
                    rumour = decode_rumour_untrusted(notice.data)
                except RemoteProtocolError as error:
                    self._guard.fault(notice.peer, error)
                    continue
                self._heard(notice.peer, rumour)
