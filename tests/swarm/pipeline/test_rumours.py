"""Rumours over the network in memory: who comes in by one when no directory helps, and what false ones cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from protocols.ledger.messages import Rumour, encode_rumour
from protocols.records import run_key
from swarm.pipeline.rumours import RUMOURS_TOPIC
from tests.fakes.signer import SeededSigner
from tests.swarm.pipeline.small_swarm import SmallSwarm, open_swarm, small_run


def run(scenario: Callable[[SmallSwarm], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_swarm(small_run(stages=1, replicas=1)) as swarm:
            await scenario(swarm)

    trio.run(main)


def test_a_newcomer_that_no_directory_helps_comes_in_when_the_members_change() -> None:
    async def scenario(swarm: SmallSwarm) -> None:
        await swarm.node(train=False)
        second = await swarm.node(train=False)
        await swarm.until(lambda: len(swarm.newest.members) == 2)
        swarm.directory_is_out = True
        newcomer = await swarm.node(train=False)
        lost = "knows no member of the run yet"
        await swarm.until(lambda: newcomer.peer.ledger.waiting_because == lost)
        await second.drain()
        await swarm.until(lambda: newcomer.peer.ledger.member is not None)

    run(scenario)


def test_what_is_no_rumour_is_counted_against_its_author_and_a_false_one_moves_nobody() -> None:
    async def scenario(swarm: SmallSwarm) -> None:
        nodes = [await swarm.node(train=False) for _ in range(2)]
        await swarm.until(lambda: len(swarm.newest.members) == 2)
        stranger = swarm.network.join(SeededSigner(1000).peer_id)
        topic = run_key(swarm.run.run_id, RUMOURS_TOPIC)
        for data in (b"", b"\xff" * 1000, encode_rumour(Rumour(2**30))):
            await stranger.publish(topic, data)
        await swarm.until(
            lambda: all(node.guard.faults().get(stranger.peer_id) == 2 for node in nodes)
        )
        record = swarm.newest
        await trio.sleep(1.0)
        assert swarm.newest == record
        assert all(node.peer.ledger.member is not None for node in nodes)

    run(scenario)


def test_nothing_is_published_while_the_members_stay_as_they_are() -> None:
    async def scenario(swarm: SmallSwarm) -> None:
        await swarm.node(train=False)
        await swarm.node(train=False)
        await swarm.until(lambda: len(swarm.newest.members) == 2)
        await trio.sleep(0.5)  # until what is due has been said
        listener = swarm.network.join(SeededSigner(1000).peer_id)
        async with listener.subscribe(run_key(swarm.run.run_id, RUMOURS_TOPIC)) as notices:
            with trio.move_on_after(1.0) as scope:
                await anext(notices)
            assert scope.cancelled_caught

    run(scenario)
