"""hivemind's DHT protocol, believing only what can be checked.

What hivemind leaves open and `DirectoryProtocol` closes:
- A newer expiry always wins, so the storing node checks every record: signed by the PeerID its sub-key names, for
  this key, within the horizon. Values without a sub-key do not exist here.
- Nobody checks that a DHT id belongs to a peer. Here it is the hash of the PeerID, and peers that claim another
  one, for themselves or for a neighbour, are not believed: ids cannot be chosen to surround a key.
- One bad entry makes it drop a whole answer, and storage has no bound. Entries are checked one by one, and
  `RecordStore` says how much is kept for whom.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from node.dht.process import lean_hivemind  # noqa: F401 - must come before hivemind

# isort: split
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2PContext
from hivemind.p2p import PeerID as HivemindPeerID
from hivemind.proto import dht_pb2
from hivemind.utils import get_dht_time
from hivemind.utils.timed_storage import ValueWithExpiration

from node.dht.messages import RECORDS_MAX, Greeting
from node.dht.process.allowance import Allowance
from node.dht.process.record_store import RecordStore, StoredRecord, StoreLimits
from node.dht.process.search import Search
from node.identity import verify_signature
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID
from protocols.records import RecordRefusedError, Refusal, Statement, open_record_untrusted

log = logging.getLogger(__name__)

RPC_TIMEOUT_S: Final = 3.0
RECORDS_PER_STORE_MAX: Final = 256
"""In one request; our own batches are an order smaller."""
FORGED_PER_ANSWER_MAX: Final = 8
"""Checking a signature costs 0.14 ms. Honest nodes store nothing forged, so the rest of such an answer is dropped."""

RECORDS_PER_SECOND: Final = 64.0
"""That one peer may have us check in the long run: 1 % of a core. An honest node renews some ten records a minute."""
RECORDS_AT_ONCE: Final = 4096.0
"""A neighbour that hands over its keys to us, a newcomer, sends a few thousand."""
BYTES_PER_RECORD: Final = 256
"""Of a value that is to be decoded: decoding so many costs no more than checking one record does."""
REQUEST_COST: Final = 0.25
"""Of a request as such, in records: 0.3 ms here and in p2pd."""


class RecordChecker(RecordValidatorBase):  # type: ignore[misc]  # hivemind ships no types
    """Opens records on behalf of the storing node and of the reader, and counts what each refused."""

    def __init__(self, limits: StoreLimits) -> None:
        self.store = RecordStore(limits)
        self.allowance = Allowance(rate=RECORDS_PER_SECOND, burst=RECORDS_AT_ONCE)
        self.refused_stores: Counter[str] = Counter()
        self.refused_reads: Counter[str] = Counter()

    def open_untrusted(
        self, digest: bytes, subkey: bytes, raw: bytes, expires_s: float
    ) -> Statement:
        """Check a record and the envelope hivemind carries it in. Raises RecordRefusedError only."""
        statement = open_record_untrusted(
            raw, digest=digest, owner=subkey, now_s=get_dht_time(), verify=verify_signature
        )
        if statement.expires_s != expires_s:
            raise RecordRefusedError(
                Refusal.MALFORMED, "a record whose envelope has another expiry"
            )
        return statement

    def validate(self, record: DHTRecord) -> bool:
        """Refuse what hivemind would take without a sub-key. Records with one do not come this way."""
        self.refused_reads[Refusal.MALFORMED] += 1
        return False


class StoredDictionaries:
    """The record store in the form in which hivemind answers finds and hands keys over to new neighbours."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def get(self, key_id: Any) -> Any:
        """Return a fresh dictionary of all live records under the key, or None."""
        records = self._store.find(key_id.to_bytes(), get_dht_time())
        return _dictionary(records) if records else None

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Every key with its dictionary."""
        for digest in self._store.digests(get_dht_time()):
            key_id = DHTID.from_bytes(digest)
            if (dictionary := self.get(key_id)) is not None:
                yield key_id, dictionary


class DirectoryProtocol(DHTProtocol):  # type: ignore[misc]  # hivemind ships no types
    """hivemind's DHT protocol under our own name, believing only what can be checked."""

    record_validator: RecordChecker
    searches: Mapping[Any, Sequence[Search]]
    """Searches in progress: for each key, who wants what is found."""

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        return f"/murmura/dht/1/{method_name}"

    async def update_routing_table(
        self, node_id: Any, peer_id: HivemindPeerID, responded: bool = True
    ) -> None:
        """Take a peer into the routing table, or drop it, unless it claims an id that is not its own."""
        if node_id is None or node_id == dht_id(peer_id):
            await super().update_routing_table(node_id, peer_id, responded=responded)

    async def rpc_ping(
        self, request: dht_pb2.PingRequest, context: P2PContext
    ) -> dht_pb2.PingResponse:
        """Say who and when we are. Never raises: hivemind also calls it in tasks that nobody waits for."""
        if not self._may_ask(context, REQUEST_COST):
            return dht_pb2.PingResponse(peer=self.node_info, dht_time=get_dht_time())
        return await super().rpc_ping(request, context)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        """Say what we hold under the keys, and who is nearer to them. Costs the asker what it makes us send."""
        held = sum(self.record_validator.store.count(key) for key in request.keys)
        if not self._may_ask(context, REQUEST_COST * (1 + len(request.keys) + held)):
            raise RuntimeError("too many requests")  # hivemind tells the asker
        return await super().rpc_find(request, context)

    def _may_ask(self, context: P2PContext, tokens: float) -> bool:
        peer = context.remote_id.to_bytes()
        return self.record_validator.allowance.spend(peer, tokens, get_dht_time())

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        """Store what passes every check; for each record say whether it did."""
        if request.peer:
            greeting = dht_pb2.PingRequest(peer=request.peer)
            asyncio.create_task(self.rpc_ping(greeting, context))  # noqa: RUF006 - hivemind's own way to meet peers
        columns = (request.keys, request.subkeys, request.values, request.expiration_time)
        if (
            len({len(column) for column in columns}) != 1
            or len(request.keys) > RECORDS_PER_STORE_MAX
        ):
            self.record_validator.refused_stores[Refusal.MALFORMED] += 1
            return dht_pb2.StoreResponse(store_ok=[False] * len(request.keys), peer=self.node_info)
        sender = context.remote_id.to_bytes()
        stored = [self._store_untrusted(sender, *row) for row in zip(*columns, strict=True)]
        return dht_pb2.StoreResponse(store_ok=stored, peer=self.node_info)

    def _store_untrusted(
        self, sender: bytes, digest: bytes, tag: bytes, value: bytes, expires_s: float
    ) -> bool:
        """Store one record, or a dictionary of them that another node hands over to us."""
        checker = self.record_validator
        if not checker.allowance.spend(sender, len(value) / BYTES_PER_RECORD, get_dht_time()):
            checker.refused_stores[Refusal.TOO_OFTEN] += 1
            return False
        try:
            entries = _entries_untrusted(tag, value, expires_s)
        except RecordRefusedError as error:
            checker.refused_stores[error.refusal] += 1
            return False
        forged = 0
        stored = True
        for owner, raw, entry_expires_s in entries:
            if checker.allowance.spend(sender, 1.0, get_dht_time()):
                refusal = self._offer_untrusted(digest, owner, raw, entry_expires_s)
            else:
                refusal = Refusal.TOO_OFTEN
            if refusal is not None:
                checker.refused_stores[refusal] += 1
                stored = False
            forged += refusal is Refusal.FORGED
            if forged >= FORGED_PER_ANSWER_MAX:
                break
        return stored

    def _offer_untrusted(
        self, digest: bytes, owner: bytes, raw: bytes, expires_s: float
    ) -> Refusal | None:
        checker = self.record_validator
        try:
            statement = checker.open_untrusted(digest, owner, raw, expires_s)
        except RecordRefusedError as error:
            return error.refusal
        return checker.store.offer(digest, statement, raw, get_dht_time())

    def _validate_dictionary(self, key_bytes: bytes, dictionary: Any) -> bool:
        """Leave the entries to `call_find`, which checks them one by one and only for keys somebody waits for."""
        return True

    async def call_find(self, peer: HivemindPeerID, keys: Collection[Any]) -> Any:
        """Ask a peer for keys. Records go to the lookups that wait for them; neighbours with false ids are left out."""
        answer = await super().call_find(peer, keys)
        if answer is None:
            return None
        for key_id, (found, _) in answer.items():
            waiting = self.searches.get(key_id)
            if waiting and found is not None and isinstance(found.value, DictionaryDHTValue):
                records = self._read_untrusted(key_id.to_bytes(), found.value)
                for search in waiting:
                    search.take(records)
        return {
            key_id: (
                None,
                {node: other for node, other in nearest.items() if node == dht_id(other)},
            )
            for key_id, (_, nearest) in answer.items()
        }

    def _read_untrusted(self, digest: bytes, dictionary: Any) -> list[StoredRecord]:
        """Open the records a peer gave us; the first few bad ones are counted, then the rest is dropped."""
        checker = self.record_validator
        records: list[StoredRecord] = []
        forged = 0
        for owner, (raw, expires_s) in itertools.islice(dictionary.data.items(), RECORDS_MAX):
            try:
                if not isinstance(owner, bytes) or not isinstance(raw, bytes):
                    raise RecordRefusedError(
                        Refusal.MALFORMED, "a dictionary entry that is no record"
                    )
                statement = checker.open_untrusted(digest, owner, raw, expires_s)
            except RecordRefusedError as error:
                checker.refused_reads[error.refusal] += 1
                forged += error.refusal is Refusal.FORGED
                if forged >= FORGED_PER_ANSWER_MAX:
                    break
            else:
                records.append(StoredRecord(statement, raw))
        return records

    async def greet(self, peer: HivemindPeerID) -> Greeting:
        """Meet a peer: both enter each other's routing table, and we learn its clock and whether it can reach us."""
        request = dht_pb2.PingRequest(peer=self.node_info, validate=True)
        asked_s = get_dht_time()
        try:
            reply = await self.get_stub(peer).rpc_ping(request, timeout=RPC_TIMEOUT_S)
        except Exception:
            log.debug("greeting failed", exc_info=True)
            return Greeting(peer=PeerID(peer.to_bytes()), answered=False)
        answered_s = get_dht_time()
        await self.update_routing_table(DHTID.from_bytes(reply.peer.node_id), peer, responded=True)
        return Greeting(
            peer=PeerID(peer.to_bytes()),
            answered=True,
            sees_us=reply.available,
            skew_s=reply.dht_time - (asked_s + answered_s) / 2,
        )


def dht_id(peer: HivemindPeerID) -> Any:
    """Return where a peer stands in the DHT: the hash of its PeerID, so that nobody chooses."""
    return DHTID.generate(source=peer.to_bytes())


def _dictionary(records: Collection[StoredRecord]) -> Any:
    dictionary = DictionaryDHTValue()
    for record in records:
        dictionary.store(bytes(record.statement.owner), record.raw, record.statement.expires_s)
    return ValueWithExpiration(dictionary, dictionary.latest_expiration_time)


def _entries_untrusted(
    tag: bytes, value: bytes, expires_s: float
) -> list[tuple[bytes, bytes, float]]:
    """Return (sub-key, record, expiry) of everything in one stored value. Raises RecordRefusedError only."""
    malformed = RecordRefusedError(Refusal.MALFORMED, "not a record under a sub-key")
    try:
        if tag != DHTProtocol.IS_DICTIONARY:
            entries = [(unpack_untrusted(tag), value, expires_s)]
        else:
            dictionary = DHTProtocol.serializer.loads(value)
            if not isinstance(dictionary, DictionaryDHTValue):
                raise malformed
            entries = [(owner, raw, item_s) for owner, (raw, item_s) in dictionary.data.items()]
    except RecordRefusedError:
        raise
    except RemoteProtocolError as error:
        raise malformed from error
    except Exception as error:  # hivemind's decoder may raise anything
        raise malformed from error
    if len(entries) > RECORDS_MAX or not all(
        isinstance(owner, bytes) and isinstance(raw, bytes) for owner, raw, _ in entries
    ):
        raise malformed
    return entries
