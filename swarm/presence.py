"""Who takes part, by the directory: say that we do, and find those that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from protocols.ids import PeerID, RunID
from protocols.ports import Directory, DirectoryRecord, Host
from protocols.records import run_key

ANNOUNCED_S: Final = 180.0
"""How long a peer that crashed is still named to those who come in; they ask several."""
LOOK_UP_FIRST_S: Final = 0.5
LOOK_UP_EVERY_S: Final = 10.0


class Presence:
    """Announces us under the mode's topic while `value` is set, and looks up others while `searching`.

    Args:
      found: told of everybody in the directory, and of connected peers, ourselves left out.
      records: told of the records themselves, for modes whose records say something.
    """

    def __init__(
        self,
        host: Host,
        directory: Directory,
        run: RunID,
        topic: str,
        *,
        found: Callable[[Sequence[PeerID]], None] = lambda peers: None,
        records: Callable[[Sequence[DirectoryRecord]], None] = lambda records: None,
    ) -> None:
        self._host = host
        self._directory = directory
        self._key = run_key(run, topic)
        self._found = found
        self._records = records
        self._value: bytes | None = None
        self._searching = True
        self._changed = trio.Event()
        self._hurry = trio.Event()

    def announce(self, value: bytes | None) -> None:
        """Say this of ourselves from now on; None says that we left."""
        if value != self._value:
            self._value = value
            self._wake()

    def look_now(self) -> None:
        """Somebody wrote whom the directory has not named yet: look again soon."""
        self._hurry.set()

    def search(self, *, searching: bool) -> None:
        """Look others up, or stop looking. Quick at first, when seconds count, then every ten seconds."""
        if searching != self._searching:
            self._searching = searching
            self._wake()

    async def run(self) -> None:
        """Announce and look up until cancelled. The directory renews an announcement by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_announced)
            nursery.start_soon(self._keep_looking)

    async def withdraw(self) -> None:
        """Say that we left, now; best effort."""
        await self._directory.withdraw(self._key)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_announced(self) -> None:
        announced: bytes | None = None
        while True:
            changed = self._changed  # taken first: it may change while the directory is told
            value = self._value
            if value is not None and value != announced:
                await self._directory.announce(self._key, value, ANNOUNCED_S)
            elif value is None and announced is not None:
                await self._directory.withdraw(self._key)
            announced = value
            await changed.wait()

    async def _keep_looking(self) -> None:
        pause_s = LOOK_UP_FIRST_S
        while True:
            changed = self._changed
            if not self._searching:
                await changed.wait()
                pause_s = LOOK_UP_FIRST_S
                continue
            records = await self._directory.look_up(self._key)
            connected = await self._host.peers()
            me = self._host.peer_id
            self._records([record for record in records if record.peer != me])
            found = dict.fromkeys([record.peer for record in records] + list(connected))
            self._found([peer for peer in found if peer != me])
            with trio.move_on_after(pause_s):
                await self._hurry.wait()
            self._hurry = trio.Event()
            pause_s = min(LOOK_UP_EVERY_S, 1.5 * pause_s)
