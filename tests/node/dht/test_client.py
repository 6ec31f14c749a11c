"""The directory's own work, in virtual time: the dht process is played by the test."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import node.dht.client
from node.dht.client import DhtDirectory
from node.dht.link import DhtProcessError
from node.dht.messages import (
    AskStatistics,
    Found,
    FoundRecord,
    Greeting,
    LookUp,
    Meet,
    Met,
    Question,
    SealedRecord,
    Statistics,
    Store,
    Stored,
)
from node.identity import verify_signature
from protocols.ids import PeerID
from protocols.records import Statement, key_digest, open_record_untrusted
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio

US, OTHER = SeededSigner(1), SeededSigner(2)
NOW_S = 1_700_000_000.0


@dataclass
class Played:
    """What the dht processes of one test do, and what they were asked."""

    dht_peers: int = 1
    skews_s: Sequence[float] = (0.25,)
    stores: bool = True
    hangs: bool = False
    lives: list[PlayedLink] = field(default_factory=list)
    stored: list[tuple[float, SealedRecord]] = field(default_factory=list)
    """(trio's clock, record)"""

    @asynccontextmanager
    async def process(self, p2pd_socket: Path, runtime_dir: Path) -> AsyncIterator[PlayedLink]:
        link = PlayedLink(self, pid=len(self.lives))
        self.lives.append(link)
        yield link
        link.give_up()

    def statements(self, key: str) -> list[tuple[float, Statement]]:
        """Return what was stored under a key, and when, checked as a storing node does."""
        return [
            (at_s, open_record_untrusted(
                record.raw, digest=record.digest, owner=US.peer_id, now_s=NOW_S + at_s, verify=verify_signature,
            ))
            for at_s, record in self.stored
            if record.digest == key_digest(key)
        ]  # fmt: skip


class PlayedLink:
    """Stands in for node.dht.link.DhtLink."""

    def __init__(self, played: Played, pid: int) -> None:
        self.played = played
        self.pid = pid
        self.closed = trio.Event()

    def give_up(self) -> None:
        self.closed.set()

    async def ask(self, question: Question, shape: type[Any], deadline_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        if self.closed.is_set():
            raise DhtProcessError("the dht process is gone")
        if self.played.hangs:
            await trio.sleep(deadline_s)
            raise DhtProcessError("too slow")
        return self._answer(question)

    def _answer(self, question: Question) -> Any:
        played = self.played
        match question:
            case Store(records=records):
                played.stored += [(trio.current_time(), record) for record in records]
                others = (int(played.stores and played.dht_peers > 0),) * len(records)
                us = (played.stores,) * len(records)
                return Stored(by_others=others, by_us=us, alone=not played.dht_peers)
            case LookUp(digest=digest):
                raws = [record.raw for _, record in played.stored if record.digest == digest]
                found = [FoundRecord(owner=US.peer_id, raw=raw) for raw in raws[-1:]]
                return Found(records=(*found, FoundRecord(owner=OTHER.peer_id, raw=b"junk")))
            case Meet(peers=peers):
                greetings = [
                    Greeting(peer=peer, answered=True, sees_us=True, skew_s=skew_s)
                    for peer, skew_s in zip(peers, played.skews_s, strict=False)
                ]
                return Met(greetings=tuple(greetings))
            case AskStatistics():
                return Statistics(
                    peers=played.dht_peers, records=0, record_bytes=0,
                    refused_stores={"forged": 2}, refused_reads={},
                )  # fmt: skip


Test = Callable[[Played, DhtDirectory], Awaitable[None]]


def play(monkeypatch: pytest.MonkeyPatch, test: Test, connected: Sequence[PeerID] = ()) -> None:
    played = Played()
    monkeypatch.setattr(node.dht.client, "dht_process", played.process)

    async def peers() -> Sequence[PeerID]:
        return connected or (OTHER.peer_id,)

    async def main() -> None:
        directory = DhtDirectory(
            p2pd_socket=Path("/nowhere"),
            runtime_dir=Path("/nowhere"),
            signer=US,
            verify=verify_signature,
            peers=peers,
            now_s=lambda: NOW_S + trio.current_time(),
            rng=random.Random(7),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(directory.run)
            await trio.sleep(1.0)
            await test(played, directory)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_announcement_is_renewed_with_a_third_of_its_life_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        assert await directory.announce("key", b"here", 60.0)
        await trio.sleep(1000.0)
        said = played.statements("key")
        gaps_s = [after[0] - before[0] for before, after in itertools.pairwise(said)]
        assert all(30.0 <= gap_s <= 39.01 for gap_s in gaps_s), gaps_s
        assert len(set(gaps_s)) > 10, "jittered"
        assert all(b[1].supersedes(a[1]) for a, b in itertools.pairwise(said))
        assert len(played.lives) == 1

    play(monkeypatch, test)


def test_keys_that_are_due_together_are_renewed_in_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        for number in range(10):
            await directory.announce(f"key {number}", b"here", 100.0)
        played.stored.clear()
        await trio.sleep(70.0)
        assert len(played.stored) == 10
        assert len({at_s for at_s, _ in played.stored}) <= 2

    play(monkeypatch, test)


def test_what_was_not_stored_is_tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        played.stores = False
        assert not await directory.announce("key", b"here", 600.0)
        await trio.sleep(20.0)
        assert 4 <= len(played.stored) <= 12
        played.stores = True
        await trio.sleep(5.0)
        count = len(played.stored)
        await trio.sleep(300.0)
        assert len(played.stored) == count

    play(monkeypatch, test)


def test_a_new_process_hears_every_announcement_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        await directory.announce("key", b"here", 600.0)
        played.stored.clear()
        played.lives[-1].give_up()
        await trio.sleep(1.0)
        assert len(played.lives) == 2
        assert {statement.value for _, statement in played.statements("key")} == {b"here"}

    play(monkeypatch, test)


def test_after_a_restart_of_the_transport_there_is_no_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        directory.transport_restarted()
        await trio.testing.wait_all_tasks_blocked()
        assert len(played.lives) == 2
        assert directory.status()["state"] == "joined"

    play(monkeypatch, test)


def test_a_process_that_hangs_is_replaced_and_meanwhile_reads_come_from_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        await directory.announce("key", b"here", 600.0)
        played.hangs = True
        assert [r.value for r in await directory.look_up("key")] == [b"here"]
        await trio.sleep(100.0)
        assert len(played.lives) > 1, "the lookup that came to nothing had it checked"
        assert directory.status()["lookups_failed"] == 1
        assert directory.status()["state"] == "restarting"
        played.hangs = False
        await trio.sleep(61.0)
        assert directory.status()["state"] == "joined"

    play(monkeypatch, test)


def test_a_drained_directory_has_withdrawn_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        for key in ("one", "two"):
            await directory.announce(key, b"here", 600.0)
        await directory.drain(5.0)
        for key in ("one", "two"):
            assert played.statements(key)[-1][1].value is None
            assert not await directory.look_up(key)
        count = len(played.stored)
        await trio.sleep(1000.0)
        assert len(played.stored) == count, "nothing is announced again"

    play(monkeypatch, test)


def test_alone_it_counts_as_stored_when_we_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(played: Played, directory: DhtDirectory) -> None:
        played.dht_peers = 0
        assert await directory.announce("key", b"here", 60.0)

    play(monkeypatch, test)


def test_status_tells_isolation_skew_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = [SeededSigner(seed).peer_id for seed in range(10, 13)]

    async def test(played: Played, directory: DhtDirectory) -> None:
        played.skews_s = (0.5, 1.5, 900.0)
        await directory.look_up("key")
        directory.peer_connected()
        await trio.sleep(1.0)
        status = directory.status()
        assert status["state"] == "joined"
        assert status["clock_skew_seconds"] in (0.5, 1.5), "one liar does not move the median far"
        assert status["records_refused"] == {"forged": 2, "malformed": 1}
        assert set(status["greeted"]) == {str(peer) for peer in connected}

        played.dht_peers = 0
        await trio.sleep(150.0)
        assert directory.status()["state"] == "isolated"
        played.dht_peers = 2
        await trio.sleep(6.0)
        assert directory.status()["state"] == "joined"
        played.lives[-1].give_up()
        await trio.sleep(2.0)
        assert directory.status()["records_refused"]["forged"] == 4, "counts outlive a process"

    play(monkeypatch, test, connected)
