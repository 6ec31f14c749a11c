"""The directory side of experts: keeps the prefix view fresh, searches it, and announces what this node hosts.

Each host writes one record under each prefix of its experts, so a search reads one key for each prefix, however many hosts
have something there.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import trio

from protocols.errors import RemoteProtocolError
from protocols.experts.messages import Stated, statement_bytes, statement_untrusted
from protocols.experts.search import BeamSearch, Found
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.experts.view import HostStatement, PrefixView
from protocols.ids import PeerID, RunID
from protocols.ports import Directory, DirectoryRecord
from protocols.records import run_key

log = logging.getLogger(__name__)

LOOKS_AT_ONCE: Final = 16
PATIENCE_S: Final = 1.0
"""A search does without what has not been answered by then."""
_TICK_S: Final = 0.1
_RECENT_MAX: Final = 512


class ExpertSearch:
    """Looks prefixes up, in the background and for searches. Used from the event loop.

    Args:
      unix_s: wall clock, by which records expire.
      faulty: told of hosts whose records are no statements.
      looked: called whenever no look is under way any more.
    """

    def __init__(
        self,
        directory: Directory,
        run: RunID,
        view: PrefixView,
        *,
        unix_s: Callable[[], float],
        faulty: Callable[[PeerID, RemoteProtocolError], None] = lambda peer, error: None,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._run = run
        self.view = view
        self._unix_s = unix_s
        self._faulty = faulty
        self._looked = looked
        self._learned = trio.Event()
        self._hurry = trio.Event()
        self._under_way: set[Prefix] = set()
        self._waiting: deque[Prefix] = deque()
        self._limit = trio.CapacityLimiter(LOOKS_AT_ONCE)
        self._seconds: deque[float] = deque(maxlen=_RECENT_MAX)
        self._looks: deque[float] = deque(maxlen=_RECENT_MAX)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep wanted prefixes fresh until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                due = self.view.due(trio.current_time())
                for prefix in dict.fromkeys([*self._waiting, *due]):
                    if prefix not in self._under_way:
                        self._under_way.add(prefix)
                        nursery.start_soon(self._look_up, prefix)
                self._waiting.clear()
                with trio.move_on_after(_TICK_S):
                    await self._hurry.wait()
                self._hurry = trio.Event()

    async def find(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int
    ) -> Sequence[ExpertUID]:
        """Return the experts alive with the highest scores, the best first; perhaps none."""
        began_s = trio.current_time()
        search = BeamSearch(grid, scores, beam=beam, until_s=began_s + PATIENCE_S)
        while True:
            learned = self._learned
            step = search.proceed(self.view, trio.current_time())
            if isinstance(step, Found):
                self._seconds.append(trio.current_time() - began_s)
                return step.uids
            self.view.want(step.prefixes)
            self._waiting.extend(step.prefixes)
            self._hurry.set()
            with trio.move_on_at(search.until_s):
                await learned.wait()

    def refresh(self) -> None:
        """Something is wrong with what is known: look everything up again soon."""
        self._waiting.extend(self.view.wanted)
        self._hurry.set()

    def percentiles_s(self) -> dict[str, float | None]:
        """Return p50 and p95 of whole searches, and of looks at the directory."""
        found: dict[str, float | None] = {}
        for name, of in (("search", self._seconds), ("look_up", self._looks)):
            cuts = statistics.quantiles(of, n=20, method="inclusive") if len(of) > 1 else None
            found[f"{name}_p50_ms"] = round(1000 * cuts[9], 3) if cuts else None
            found[f"{name}_p95_ms"] = round(1000 * cuts[18], 3) if cuts else None
        return found

    async def _look_up(self, prefix: Prefix) -> None:
        try:
            async with self._limit:
                asked_s = trio.current_time()
                records = await self._directory.look_up(run_key(self._run, prefix.topic))
        finally:
            self._under_way.discard(prefix)
        self._looks.append(trio.current_time() - asked_s)
        statements = [found for record in records if (found := self._statement_untrusted(record))]
        self.view.learn(prefix, statements, asked_s=asked_s)
        self._learned.set()
        self._learned = trio.Event()
        if not self._under_way:
            self._looked()

    def _statement_untrusted(self, record: DirectoryRecord) -> HostStatement | None:
        try:
            stated = statement_untrusted(record.value)
        except RemoteProtocolError as error:
            self._faulty(record.peer, error)
            return None
        until_s = trio.current_time() + record.expires_s - self._unix_s()
        return HostStatement(record.peer, stated, until_s, record.issued_s)


class ExpertAnnouncer:
    """Writes this node's records, one for each prefix. The directory renews them by itself."""

    def __init__(self, directory: Directory, run: RunID, *, lifetime_s: float) -> None:
        self._directory = directory
        self._run = run
        self._lifetime_s = lifetime_s
        self._wanted: dict[Prefix, bytes] = {}
        self._written: dict[Prefix, bytes] = {}
        self._changed = trio.Event()

    def announce(self, experts: Mapping[ExpertUID, int]) -> None:
        """State these from now on, with their epochs; the latest call counts."""
        self._wanted = {
            prefix: statement_bytes(stated) for prefix, stated in _by_prefix(experts).items()
        }
        self._changed.set()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Write what changed, until cancelled."""
        self._written = {}
        task_status.started()
        while True:
            self._changed = trio.Event()
            await self.write()
            await self._changed.wait()

    async def write(self) -> None:
        """Write what is not written yet."""
        wanted = self._wanted
        async with trio.open_nursery() as nursery:
            for prefix in self._written.keys() - wanted.keys():
                nursery.start_soon(self._withdraw, prefix)
            for prefix, value in wanted.items():
                if self._written.get(prefix) != value:
                    nursery.start_soon(self._write, prefix, value)

    async def _write(self, prefix: Prefix, value: bytes) -> None:
        key = run_key(self._run, prefix.topic)
        await self._directory.announce(key, value, self._lifetime_s)
        self._written[prefix] = value

    async def _withdraw(self, prefix: Prefix) -> None:
        await self._directory.withdraw(run_key(self._run, prefix.topic))
        self._written.pop(prefix, None)


def _by_prefix(experts: Mapping[ExpertUID, int]) -> dict[Prefix, Iterable[Stated]]:
    found: dict[Prefix, dict[int, int]] = {}
    for uid, epoch in experts.items():
        for prefix in uid.prefixes:
            last = len(prefix.place) == len(uid.place) - 1
            found.setdefault(prefix, {})[uid.place[len(prefix.place)]] = epoch if last else 0
    return {
        prefix: [Stated(coordinate, epoch) for coordinate, epoch in lines.items()]
        for prefix, lines in found.items()
    }
