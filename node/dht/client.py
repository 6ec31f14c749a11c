"""The Directory port on hivemind's DHT: supervises the dht process, keeps what we announced alive, remembers what was read.

Nothing here waits for the network at start: joining is a background state, and reads are answered from memory while
the process restarts. Dialling peers is `node.joining`'s; this greets whom the host is connected to.
"""

from __future__ import annotations

import enum
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from node.dht.health import DirectoryHealth, DirectoryState
from node.dht.link import DhtLink, DhtProcessError, dht_process
from node.dht.messages import (
    AskStatistics,
    Found,
    LookUp,
    LookUpFirst,
    LookUpRest,
    Meet,
    Met,
    SealedRecord,
    Statistics,
    Store,
    Stored,
)
from node.dht.record_cache import RecordCache
from node.services import STEADY_S, backoff_s
from protocols.ids import PeerID
from protocols.ports import DirectoryRecord, Signer, VerifySignature
from protocols.records import (
    Author,
    RecordRefusedError,
    Statement,
    key_digest,
    open_record_untrusted,
)

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTimes:
    """Deadlines and periods, seconds."""

    start_s: float = 30.0
    """For the process to come up; 0.4 s on an idle machine, but six nodes may start at once on a small one."""
    store_s: float = 10.0
    """A search and one request to each of 5 peers, dead ones (3 s each) among them."""
    look_up_s: float = 6.0
    """As long as two dead peers in a row take; what is remembered is returned then."""
    meet_s: float = 15.0
    check_every_s: float = 120.0
    """Some connected peers are greeted so often, to notice and heal a DHT that has fallen apart."""
    retry_max_s: float = 5.0
    """While there is nobody in the DHT, or an announcement was not stored."""


GREETED_MAX: Final = 8
"""Connected peers greeted at once, drawn at random, until all of them have answered."""
GREETED_AGAIN_MAX: Final = 2
"""From then on. One that is in the right DHT is enough to be found, and so to find the others, again."""
VERIFIED_MAX: Final = 1024
"""Signatures remembered as checked, so that a record read every few seconds costs its 0.14 ms once."""
RECORDS_PER_TURN: Final = 32
"""Records opened before other tasks get a turn: 5 ms of new signatures."""


class _Met(enum.Enum):
    """How a round of greetings went."""

    NOBODY = 0
    """The DHT knows nobody besides us."""
    SOME = 1
    """We are in the DHT, and somebody connected did not answer."""
    ALL = 2


@dataclass(slots=True)
class _Announcement:
    """What we want to be listed until it is withdrawn."""

    value: bytes
    lifetime_s: float
    renew_at_s: float
    """trio's clock."""
    failures: int = 0


class DhtDirectory:
    """Implements protocols.ports.Directory and node.services.Service.

    Args:
      p2pd_socket: p2pd's control socket.
      runtime_dir: a folder only we can enter.
      peers: whom the host is connected to (`Host.peers`).
      now_s: unix seconds, the clock that expiries are written in.
    """

    name = "directory"

    def __init__(
        self,
        *,
        p2pd_socket: Path,
        runtime_dir: Path,
        signer: Signer,
        verify: VerifySignature,
        peers: Callable[[], Awaitable[Sequence[PeerID]]],
        now_s: Callable[[], float],
        rng: random.Random,
        times: DirectoryTimes | None = None,
    ) -> None:
        self._p2pd_socket = p2pd_socket
        self._runtime_dir = runtime_dir
        self._us = signer.peer_id
        self._author = Author(signer)
        self._verify = functools.lru_cache(maxsize=VERIFIED_MAX)(verify)
        self._peers = peers
        self._now_s = now_s
        self._rng = rng
        self._times = times or DirectoryTimes()
        self._announcements: dict[str, _Announcement] = {}
        self._cache = RecordCache()
        self._health = DirectoryHealth()
        self._link: DhtLink | None = None
        self._restart_now = trio.Event()
        self._announce_now = trio.Event()
        self._meet_now = trio.Event()

    # -- the port ----------------------------------------------------------------------------------------------------

    async def announce(self, key: str, value: bytes, lifetime_s: float) -> bool:
        """See the port. Announced again before it expires, until `withdraw`; false only says: not stored yet."""
        statement, raw = self._author.announce(
            key, value, now_s=self._now_s(), lifetime_s=lifetime_s
        )
        self._cache.add(key, [statement], self._now_s())
        announcement = _Announcement(value, lifetime_s, renew_at_s=trio.current_time() + lifetime_s)
        self._announcements[key] = announcement
        (stored,) = await self._store([SealedRecord(digest=key_digest(key), raw=raw)])
        self._schedule(announcement, stored=stored)
        return stored

    async def withdraw(self, key: str) -> None:
        """See the port."""
        self._announcements.pop(key, None)
        withdrawal = self._author.withdraw(key, now_s=self._now_s())
        if withdrawal is not None:
            statement, raw = withdrawal
            self._cache.add(key, [statement], self._now_s())
            await self._store([SealedRecord(digest=key_digest(key), raw=raw)])

    async def look_up(
        self, key: str, *, first: Callable[[Sequence[DirectoryRecord]], None] | None = None
    ) -> Sequence[DirectoryRecord]:
        """See the port. Costs a search: some 5 to 20 small requests to peers."""
        digest = key_digest(key)
        began_s = trio.current_time()
        found = Found(records=())
        whole: LookUp | LookUpRest = LookUp(digest=digest)
        try:
            if first is not None and self._link is not None:
                question = LookUpFirst(digest=digest)
                found = await self._link.ask(question, Found, self._times.look_up_s)
                whole = LookUpRest(digest=digest)
                if found.records:
                    opened = await self._open_untrusted(digest, found)
                    self._cache.add(key, opened, self._now_s())
                    first(self._cache.live(key, self._now_s()))
            if self._link is not None:
                found = await self._link.ask(whole, Found, self._times.look_up_s)
                self._health.looked_up(trio.current_time() - began_s)
        except DhtProcessError as error:
            self._health.lookups_failed += 1
            self._meet_now.set()  # whether the process hangs is found out now, not at the next check
            log.debug("lookup answered from memory: %s", error)
        self._cache.add(key, await self._open_untrusted(digest, found), self._now_s())
        return self._cache.live(key, self._now_s())

    # -- the service -------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the process, the announcements and our place in the DHT until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_announced)
            nursery.start_soon(self._keep_joined)
            await self._keep_process()

    async def drain(self, deadline_s: float) -> None:
        """Withdraw everything we have announced."""
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                for key in list(self._announcements):
                    nursery.start_soon(self.withdraw, key)

    def status(self) -> dict[str, Any]:
        """See node.services.Service."""
        return {
            **self._health.status(trio.current_time()),
            "pid": self._link.pid if self._link else None,
            "announced": len(self._announcements),
        }

    def transport_restarted(self) -> None:
        """p2pd has been started again: the dht process cannot reconnect, so replace it now, without a backoff."""
        if self._link is not None:
            self._link.give_up()
        self._restart_now.set()

    def peer_connected(self) -> None:
        """The host has a new connection: greet now instead of at the next check."""
        self._meet_now.set()

    # -- the process -------------------------------------------------------------------------------------------------

    async def _keep_process(self) -> None:
        failures = 0
        while True:
            began_s = trio.current_time()
            reason = await self._live_once()
            self._restart_now, asked = trio.Event(), self._restart_now.is_set()
            failures = 0 if asked or trio.current_time() - began_s > STEADY_S else failures
            self._health.enter(DirectoryState.RESTARTING, reason, trio.current_time())
            self._health.process_restarts += 1
            failures += 1
            if not asked:
                with trio.move_on_after(backoff_s(failures, self._rng)):
                    await self._restart_now.wait()

    async def _live_once(self) -> str:
        """Run one dht process until it ends. Returns why it did."""
        reason = "the dht process ended"
        try:
            async with dht_process(self._p2pd_socket, self._runtime_dir) as link:
                await link.ask(AskStatistics(), Statistics, self._times.start_s)
                self._link = link
                self._health.enter(
                    DirectoryState.JOINING, "the dht process is up", trio.current_time()
                )
                self._announce_everything_again()
                self._meet_now.set()
                await link.closed.wait()
        except* DhtProcessError:
            reason = "the dht process did not come up"
        except* OSError as group:
            reason = f"the dht process cannot be started: {group.exceptions[0]}"
        finally:
            self._link = None
        return reason

    # -- announcements -----------------------------------------------------------------------------------------------

    def _announce_everything_again(self) -> None:
        """A new dht process may be the only one left that knows us; everything is due at once."""
        for announcement in self._announcements.values():
            announcement.renew_at_s = trio.current_time()
        self._announce_now.set()

    async def _keep_announced(self) -> None:
        while True:
            self._announce_now = trio.Event()
            await self._announce_due()
            due_s = [item.renew_at_s for item in self._announcements.values()]
            with trio.move_on_at(min(due_s, default=float("inf"))):
                await self._announce_now.wait()

    async def _announce_due(self) -> None:
        """Announce again what is due, and in the same batch what is nearly so."""
        now_s = trio.current_time()
        due = {
            key: item
            for key, item in self._announcements.items()
            if item.renew_at_s <= now_s + 0.1 * item.lifetime_s
        }
        if not any(item.renew_at_s <= now_s for item in due.values()):
            return
        records = []
        for key, item in due.items():
            statement, raw = self._author.announce(
                key, item.value, now_s=self._now_s(), lifetime_s=item.lifetime_s
            )
            self._cache.add(key, [statement], self._now_s())
            records.append(SealedRecord(digest=key_digest(key), raw=raw))
        for item, stored in zip(due.values(), await self._store(records), strict=True):
            self._schedule(item, stored=stored)

    def _schedule(self, item: _Announcement, *, stored: bool) -> None:
        """Renew a stored record with a third of its life left, jittered; try again soon what was not stored."""
        item.failures = 0 if stored else item.failures + 1
        if stored:
            delay_s = item.lifetime_s * self._rng.uniform(0.55, 0.65)
        else:
            delay_s = min(backoff_s(item.failures, self._rng), self._times.retry_max_s)
        item.renew_at_s = trio.current_time() + delay_s
        self._announce_now.set()

    async def _store(self, records: list[SealedRecord]) -> list[bool]:
        """Store records; for each, whether another peer has it, or, when there is no other, whether we have."""
        if self._link is None or not records:
            return [False] * len(records)
        try:
            stored = await self._link.ask(
                Store(records=tuple(records)), Stored, self._times.store_s
            )
        except DhtProcessError as error:
            log.debug("not announced: %s", error)
            return [False] * len(records)
        return [
            others > 0 or (us and stored.alone)
            for others, us in zip(stored.by_others, stored.by_us, strict=True)
        ]

    # -- our place in the DHT ----------------------------------------------------------------------------------------

    async def _keep_joined(self) -> None:
        failures = 0
        met = _Met.NOBODY
        while True:
            asked, self._meet_now = self._meet_now.is_set(), trio.Event()
            if self._link is None:
                failures = 0
                await self._meet_now.wait()  # a new process asks for it
                continue
            again = met is _Met.ALL and not asked
            met = await self._meet(self._link, GREETED_AGAIN_MAX if again else GREETED_MAX)
            failures = 0 if met is _Met.ALL else failures + 1
            if met is _Met.ALL:
                delay_s = self._times.check_every_s * self._rng.uniform(0.8, 1.2)
            elif met is _Met.SOME:  # whoever has just started answers soon, a light client never
                delay_s = backoff_s(failures, self._rng)
            else:
                delay_s = min(backoff_s(failures, self._rng), self._times.retry_max_s)
            with trio.move_on_after(delay_s):
                await self._meet_now.wait()

    async def _meet(self, link: DhtLink, greeted_max: int) -> _Met:
        """Greet some connected peers and take stock."""
        connected = [peer for peer in await self._peers() if peer != self._us]
        chosen = self._rng.sample(connected, min(greeted_max, len(connected)))
        try:
            met = await link.ask(Meet(peers=tuple(chosen)), Met, self._times.meet_s)
            statistics = await link.ask(AskStatistics(), Statistics, self._times.store_s)
        except DhtProcessError as error:
            log.warning("dht process is given up: %s", error)
            link.give_up()
            return _Met.NOBODY
        had_peers = self._health.dht_peers > 0
        self._health.met(met, statistics, trio.current_time())
        if statistics.peers and not had_peers:
            self._announce_everything_again()  # until now nobody else has stored what we announced
        if not statistics.peers:
            return _Met.NOBODY
        return _Met.ALL if all(greeting.answered for greeting in met.greetings) else _Met.SOME

    async def _open_untrusted(self, digest: bytes, found: Found) -> list[Statement]:
        """Check once more, as every reader does, what came out of a process that talks to strangers."""
        statements = []
        for index, record in enumerate(found.records):
            if index % RECORDS_PER_TURN == RECORDS_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
            try:
                statement = open_record_untrusted(
                    record.raw,
                    digest=digest,
                    owner=record.owner,
                    now_s=self._now_s(),
                    verify=self._verify,
                )
            except RecordRefusedError as error:
                self._health.refused(error.refusal)
            else:
                statements.append(statement)
        return statements
