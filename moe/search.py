"""The directory side of experts: keeps the prefix view fresh, searches it, and announces what this node hosts.

Each host writes one record under each prefix of its experts, so a search reads one key for each prefix, however many hosts
have something there.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import trio

from protocols.errors import RemoteProtocolError
from protocols.experts.announcements import Announcements
from protocols.experts.lookups import PATIENCE_S, TICK_S, LookUps
from protocols.experts.messages import statement_untrusted
from protocols.experts.search import BeamSearch, Found
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.experts.view import HostStatement, PrefixView
from protocols.ids import PeerID, RunID
from protocols.ports import Directory, DirectoryRecord
from protocols.records import run_key

log = logging.getLogger(__name__)

_RECENT_MAX: Final = 512


class ExpertSearch:
    """Looks prefixes up, in the background and for searches. Used from the event loop.

    Args:
      unix_s: wall clock, by which records expire.
      faulty: told of hosts whose records are no statements.
      looked: called again and again, when what is known is to be told.
      found: told of every host that has a record under a prefix.
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
        found: Callable[[PeerID, Prefix], None] = lambda peer, prefix: None,
    ) -> None:
        self._directory = directory
        self._run = run
        self.view = view
        self._unix_s = unix_s
        self._faulty = faulty
        self._looked = looked
        self._found = found
        self._look_ups = LookUps(view)
        self._learned = trio.Event()
        self._hurry = trio.Event()
        self._seconds: deque[float] = deque(maxlen=_RECENT_MAX)
        self._looks: deque[float] = deque(maxlen=_RECENT_MAX)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep wanted prefixes fresh until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                for prefix in self._look_ups.begin(trio.current_time()):
                    nursery.start_soon(self._look_up, prefix)
                with trio.move_on_after(TICK_S):
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
            self._look_ups.hurry(step.prefixes, trio.current_time())
            self._hurry.set()
            with trio.move_on_at(search.until_s):
                await learned.wait()

    def refresh(self) -> None:
        """Look everything up again soon."""
        self._look_ups.hurry(self.view.wanted, trio.current_time())
        self._hurry.set()

    def look_again(self, uid: ExpertUID) -> None:
        """What is known of this expert has shown to be wrong, or somebody knows more."""
        self._look_ups.hurry(uid.prefixes[-1:], trio.current_time())
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
        asked_s = trio.current_time()
        statements = None

        def first(records: Sequence[DirectoryRecord]) -> None:
            known = self._statements_untrusted(records, blame=False)  # they come again
            self._look_ups.began_to_answer(prefix, known, asked_s=asked_s)
            self._tell_searches()

        nothing_known = self.view.asked_s(prefix) == -math.inf
        key = run_key(self._run, prefix.topic)
        try:
            records = await self._directory.look_up(key, first=first if nothing_known else None)
            for record in records:
                self._found(record.peer, prefix)
            statements = self._statements_untrusted(records)
        finally:
            now_s = trio.current_time()
            tell = self._look_ups.ended(prefix, statements, asked_s=asked_s, now_s=now_s)
        self._looks.append(now_s - asked_s)
        self._tell_searches()
        self._hurry.set()
        if tell:
            self._looked()

    def _tell_searches(self) -> None:
        self._learned.set()
        self._learned = trio.Event()

    def _statements_untrusted(
        self, records: Sequence[DirectoryRecord], *, blame: bool = True
    ) -> list[HostStatement]:
        now_s, unix_s = trio.current_time(), self._unix_s()
        statements = []
        for record in records:
            try:
                stated = statement_untrusted(record.value)
            except RemoteProtocolError as error:
                if blame:
                    self._faulty(record.peer, error)
                continue
            until_s = now_s + record.expires_s - unix_s
            statements.append(HostStatement(record.peer, stated, until_s, record.issued_s))
        return statements


class ExpertAnnouncer:
    """Writes this node's records, one for each prefix. The directory renews them by itself."""

    def __init__(self, directory: Directory, run: RunID, *, lifetime_s: float) -> None:
        self._directory = directory
        self._run = run
        self._lifetime_s = lifetime_s
        self.core = Announcements()
        self._changed = trio.Event()

    def announce(
        self,
        experts: Mapping[ExpertUID, int],
        replicas: Mapping[ExpertUID, tuple[PeerID, ...]] | None = None,
    ) -> None:
        """State these from now on, with their epochs and who answers for them as well; the latest call counts."""
        self.core.announce(experts, replicas)
        self._changed.set()

    def found(self, prefix: Prefix) -> None:
        """Our own record is under this prefix."""
        if self.core.found(prefix):
            self._changed.set()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Write what changed, until cancelled."""
        self.core.forget()
        task_status.started()
        while True:
            self._changed = trio.Event()
            await self.write()
            await self._changed.wait()

    async def write(self) -> None:
        """Write what is not written yet."""
        async with trio.open_nursery() as nursery:
            for prefix, value in self.core.changes():
                nursery.start_soon(self._write, prefix, value)

    async def _write(self, prefix: Prefix, value: bytes | None) -> None:
        key = run_key(self._run, prefix.topic)
        if value is None:
            await self._directory.withdraw(key)
        else:
            await self._directory.announce(key, value, self._lifetime_s)
        self.core.wrote(prefix, value)
