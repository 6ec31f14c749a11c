"""A dishonest node, as its own process: tries to have bad records stored, then serves them to whoever looks up.

    python -m tests.node.dht.hostile --p2pd PATH --runtime-dir DIR --victim PEERID --key KEY

Prints one JSON object, what the victim said to each record, and then serves until stdin closes.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgpack

from node.dht.messages import Meet
from node.dht.process.directory_node import DirectoryNode

# isort: split
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID as HivemindPeerID
from hivemind.utils import get_dht_time
from hivemind.utils.timed_storage import ValueWithExpiration

from protocols.ids import PeerID
from protocols.records import Statement, key_digest
from protocols.schema import encode
from tests.fakes.signer import SeededSigner

YEAR_S = 365 * 86400.0
US, SOMEBODY = SeededSigner(666), SeededSigner(667)


def _signed(statement: Statement, signer: SeededSigner, digest: bytes) -> bytes:
    message = msgpack.packb(["murmura/directory/1", digest, encode(statement)])
    return bytes(msgpack.packb({"statement": encode(statement), "signature": signer.sign(message)}))


def bad_records(digest: bytes, now_s: float) -> dict[str, tuple[Any, bytes, float]]:
    """Return name -> (sub-key, record, expiry in the envelope)."""
    mine = Statement(owner=US.peer_id, value=b"x", issued_s=now_s, expires_s=now_s + 60, sequence=1)
    his = dataclasses.replace(mine, owner=SOMEBODY.peer_id)
    year = dataclasses.replace(mine, expires_s=now_s + YEAR_S)
    large = dataclasses.replace(mine, value=b"x" * 4200)
    us, somebody = bytes(US.peer_id), bytes(SOMEBODY.peer_id)
    return {
        "forged": (somebody, _signed(his, US, digest), mine.expires_s),
        "foreign": (somebody, _signed(mine, US, digest), mine.expires_s),
        "moved": (us, _signed(mine, US, key_digest("another key")), mine.expires_s),
        "year": (us, _signed(year, US, digest), year.expires_s),
        "year in the envelope only": (us, _signed(mine, US, digest), now_s + YEAR_S),
        "oversized": (us, _signed(large, US, digest), mine.expires_s),
        "random": (us, os.urandom(100), mine.expires_s),
        "odd sub-key": ([1, 2], _signed(mine, US, digest), mine.expires_s),
        "no sub-key": (None, _signed(mine, US, digest), mine.expires_s),
    }


class _Planted:
    """Stands in for the storage hivemind answers from."""

    def __init__(self, records: dict[str, tuple[Any, bytes, float]], now_s: float) -> None:
        self._dictionary = DictionaryDHTValue()
        for index, (subkey, raw, expires_s) in enumerate(records.values()):
            # One dictionary has one entry per sub-key, so those that share ours get a made-up one.
            owner = subkey if isinstance(subkey, bytes) else b"odd %d" % index
            owner = owner if owner not in self._dictionary.data else b"%d" % index
            self._dictionary.store(owner, raw, expires_s)
        self._expires_s = now_s + YEAR_S

    def get(self, key_id: Any) -> Any:
        return ValueWithExpiration(self._dictionary, self._expires_s)

    def items(self) -> list[Any]:
        return []


async def _main(arguments: argparse.Namespace) -> None:
    node = await DirectoryNode.create(arguments.p2pd, arguments.runtime_dir)
    victim = PeerID.from_text(arguments.victim)
    await node.answer(Meet(peers=(victim,)))
    digest, now_s = key_digest(arguments.key), get_dht_time()
    records = bad_records(digest, now_s)
    said = {}
    for name, (subkey, raw, expires_s) in records.items():
        (said[name],) = await node._protocol.call_store(
            HivemindPeerID(bytes(victim)),
            keys=[DHTID.from_bytes(digest)],
            values=[raw],
            expiration_time=[expires_s],
            subkeys=None if subkey is None else [subkey],
        )
    node._protocol.storage = _Planted(records, now_s)
    print(json.dumps(said), flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--p2pd", type=Path, required=True)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    parser.add_argument("--victim", required=True)
    parser.add_argument("--key", required=True)
    asyncio.run(_main(parser.parse_args()))
