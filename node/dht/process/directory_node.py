"""Answers the daemon's questions with one DHT node."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final, assert_never

from node.dht.process import lean_hivemind  # noqa: F401 - must come before hivemind

# isort: split
from hivemind.dht import node as hivemind_node
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P
from hivemind.p2p import PeerID as HivemindPeerID
from hivemind.utils import get_dht_time
from hivemind.utils.multiaddr import Multiaddr

from node.dht.messages import (
    Answer,
    AskStatistics,
    Found,
    LookUp,
    LookUpFirst,
    LookUpRest,
    Meet,
    Met,
    Question,
    SealedRecord,
    Statistics,
    Store,
    Stored,
)
from node.dht.process.protocol import (
    RPC_TIMEOUT_S,
    DirectoryProtocol,
    RecordChecker,
    StoredDictionaries,
    dht_id,
)
from node.dht.process.record_store import StoreLimits
from node.dht.process.search import Search
from node.identity import verify_signature
from protocols.records import Statement, open_record_untrusted

log = logging.getLogger(__name__)

REPLICAS: Final = 5
"""Peers that store a key. At 5 a key survives until its next announcement when 4 of them die at once."""


class DirectoryNode:
    """Answers the daemon's questions with one DHT node."""

    def __init__(self, dht: Any, us: HivemindPeerID, checker: RecordChecker) -> None:
        self._dht = dht
        self._us = us
        self._checker = checker
        self._protocol: DirectoryProtocol = dht.protocol
        self._searches: dict[Any, list[Search]] = {}
        self._first_ones: dict[bytes, Search] = {}
        """By digest: searches begun by `LookUpFirst` that are not over."""
        self._protocol.searches = self._searches
        self._protocol.storage = StoredDictionaries(checker.store)

    @classmethod
    async def create(cls, p2pd: Path, runtime_dir: Path) -> DirectoryNode:
        """Register with p2pd and start to serve; joining comes later, by `Meet`."""
        P2P._UNIX_SOCKET_PREFIX = (
            f"/unix{runtime_dir}/dht-"  # or hivemind puts its sockets into /tmp
        )
        p2p = await P2P.replicate(Multiaddr(f"/unix{p2pd}"))
        checker = RecordChecker(StoreLimits())
        hivemind_node.DHTProtocol = (
            DirectoryProtocol  # the one seam: DHTNode has no argument for it
        )
        dht = await hivemind_node.DHTNode.create(
            p2p,
            node_id=dht_id(p2p.peer_id),
            num_replicas=REPLICAS,
            wait_timeout=RPC_TIMEOUT_S,
            record_validator=checker,
            backoff_rate=1.0,  # the default doubles without a bound: a peer back after an outage stays shunned
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_size=1,
        )
        return cls(dht, p2p.peer_id, checker)

    async def answer(self, question: Question) -> Answer:
        match question:
            case Meet():
                return await self._meet(question)
            case Store():
                return await self._store(question)
            case LookUp():
                return await self._whole(self._search(question.digest))
            case LookUpFirst():
                return await self._first(question)
            case LookUpRest():
                search = self._first_ones.get(question.digest)
                return await self._whole(search or self._search(question.digest))
            case AskStatistics():
                return self._statistics()
            case _:
                assert_never(question)

    async def _meet(self, question: Meet) -> Met:
        greetings = await asyncio.gather(
            *(self._protocol.greet(HivemindPeerID(bytes(peer))) for peer in question.peers)
        )
        if any(greeting.answered for greeting in greetings):
            await self._dht.find_nearest_nodes([self._dht.node_id])
        return Met(greetings=tuple(greetings))

    async def _store(self, question: Store) -> Stored:
        """Store each record at the peers nearest to its key; one request per peer, however many keys."""
        records = question.records
        nearest = await self._dht.find_nearest_nodes(
            {DHTID.from_bytes(record.digest) for record in records}, k_nearest=REPLICAS
        )
        batches: dict[HivemindPeerID, list[int]] = {}
        for index, record in enumerate(records):
            for peer in nearest[DHTID.from_bytes(record.digest)].values():
                batches.setdefault(peer, []).append(index)
        ours = set(batches.pop(self._us, ()))
        answers = await asyncio.gather(
            *(
                self._store_at(peer, [records[index] for index in batch])
                for peer, batch in batches.items()
            )
        )
        by_others = [0] * len(records)
        for batch, stored in zip(batches.values(), answers, strict=True):
            for index, taken in zip(batch, stored, strict=False):
                by_others[index] += bool(taken)
        by_us = tuple(
            index in ours and self._store_here(record) for index, record in enumerate(records)
        )
        return Stored(by_others=tuple(by_others), by_us=by_us, alone=not self._peer_count())

    async def _store_at(self, peer: HivemindPeerID, records: list[SealedRecord]) -> list[bool]:
        statements = [self._open_ours(record) for record in records]
        return (
            await self._protocol.call_store(
                peer,
                keys=[DHTID.from_bytes(record.digest) for record in records],
                values=[record.raw for record in records],
                expiration_time=[statement.expires_s for statement in statements],
                subkeys=[bytes(statement.owner) for statement in statements],
            )
            or []
        )

    def _store_here(self, record: SealedRecord) -> bool:
        statement = self._open_ours(record)
        return (
            self._checker.store.offer(record.digest, statement, record.raw, get_dht_time()) is None
        )

    def _open_ours(self, record: SealedRecord) -> Statement:
        return open_record_untrusted(
            record.raw,
            digest=record.digest,
            owner=self._us.to_bytes(),
            now_s=get_dht_time(),
            verify=verify_signature,
        )

    def _search(self, digest: bytes) -> Search:
        """Begin to ask the peers nearest to a key."""
        search = Search(self._checker.store.find(digest, get_dht_time()))
        search.task = asyncio.create_task(self._ask_nearest(DHTID.from_bytes(digest), search))
        return search

    async def _ask_nearest(self, key_id: Any, search: Search) -> None:
        self._searches.setdefault(key_id, []).append(search)
        try:
            await self._dht.find_nearest_nodes([key_id])
        finally:
            waiting = [other for other in self._searches.pop(key_id) if other is not search]
            if waiting:
                self._searches[key_id] = waiting

    async def _whole(self, search: Search) -> Found:
        await asyncio.shield(search.task)
        return search.found()

    async def _first(self, question: LookUpFirst) -> Found:
        digest = question.digest
        search = self._first_ones[digest] = self._search(digest)
        search.task.add_done_callback(lambda _: self._forget(digest, search))
        something = asyncio.ensure_future(search.something.wait())
        try:
            await asyncio.wait({something, search.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            something.cancel()
        return search.found()

    def _forget(self, digest: bytes, search: Search) -> None:
        if self._first_ones.get(digest) is search:
            del self._first_ones[digest]
        if not search.task.cancelled() and (error := search.task.exception()):
            log.debug("a search in the DHT failed: %r", error)

    def _peer_count(self) -> int:
        return len(self._protocol.routing_table.uid_to_peer_id)

    def _statistics(self) -> Statistics:
        store = self._checker.store
        store.forget_expired(get_dht_time())
        return Statistics(
            peers=self._peer_count(),
            records=len(store),
            record_bytes=store.total_bytes,
            refused_stores=dict(self._checker.refused_stores),
            refused_reads=dict(self._checker.refused_reads),
        )
