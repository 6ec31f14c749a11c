"""The in-memory directory keeps the port's promises, and the faults tests ask it for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.contracts.directory import CHECKS, Check, Member
from tests.fakes.directory import MemoryDht
from tests.fakes.signer import SeededSigner

pytestmark = pytest.mark.trio


def three() -> tuple[MemoryDht, list[Member]]:
    dht = MemoryDht()
    signers = [SeededSigner(seed) for seed in range(3)]
    return dht, [Member(signer.peer_id, dht.directory(signer)) for signer in signers]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check: Check) -> None:
    async def main() -> None:
        await check(three()[1])

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_living_peer_stays_listed_and_a_crashed_one_expires() -> None:
    async def main() -> None:
        dht, (alive, dead, reader) = three()
        for member in (alive, dead):
            await member.directory.announce("key", b"here", 30.0)
        await trio.sleep(100.0)
        assert len(await reader.directory.look_up("key")) == 2
        dht.directories[1].crash()
        await trio.sleep(29.0)
        assert len(await reader.directory.look_up("key")) == 2
        await trio.sleep(2.0)
        assert [record.peer for record in await reader.directory.look_up("key")] == [alive.peer]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_unavailable_directory_answers_from_memory_and_a_stale_one_sees_nothing_new() -> None:
    async def main() -> None:
        dht, (writer, cut_off, behind) = three()
        await writer.directory.announce("key", b"one", 30.0)
        for member in (cut_off, behind):
            await member.directory.look_up("key")
        dht.directories[1].available = False
        dht.directories[2].stale = True
        await writer.directory.announce("key", b"two", 30.0)
        for member in (cut_off, behind):
            assert [r.value for r in await member.directory.look_up("key")] == [b"one"]
        assert not await cut_off.directory.announce("key", b"unheard", 30.0)
        assert len(await writer.directory.look_up("key")) == 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_planted_junk_is_dropped_and_counted() -> None:
    async def main() -> None:
        dht, (reader, victim, _) = three()
        dht.plant("key", victim.peer, b"junk")
        assert not await reader.directory.look_up("key")
        assert dht.directories[0].refused == {"malformed": 1}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
