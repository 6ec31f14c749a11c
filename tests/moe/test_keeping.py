"""Experts outlive their hosts: real snapshots, signatures and transfers over a network in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trio

from protocols.experts.assignment import preference
from protocols.experts.epoch import changes
from protocols.experts.messages import (
    HandOver,
    Keep,
    SnapshotOffer,
    Snapshots,
    SnapshotWanted,
    signed_bytes,
)
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID
from swarm.calls import CallError
from tests.moe.keepers import SPEC, UIDS, Keeping, ask, keepers, spread, train, until
from tests.moe.nodes import RUN

pytestmark = pytest.mark.trio


def test_an_adopted_expert_goes_on_with_parameters_and_optimizer_of_its_last_snapshot() -> None:
    async def main() -> None:
        async with keepers() as (network, found):
            await until(lambda: spread(found))
            victim = max(found, key=lambda one: len(one.hosted))
            uid = min(victim.hosted)
            await train(victim, uid, 5)
            others = [one for one in found if one is not victim]
            await until(
                lambda: any(
                    one.keeper.kept[uid].version == 5 for one in others if uid in one.keeper.kept
                )
            )
            before = victim.node.peer.server.experts[uid].hosted.snapshot()
            network.crash(victim.node.me)
            for one in others:
                one.keeper.suspect(victim.node.me)
            await until(lambda: spread(others))
            host = next(one for one in others if uid in one.hosted)
            expert = host.node.peer.server.experts[uid]
            assert changes(expert.epoch) == 2
            after = expert.hosted.snapshot()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert sum(one.keeper.core.lost for one in others) == 0

    trio.run(main)


@pytest.mark.soak
def test_a_node_that_leaves_hands_over_what_its_experts_know_now() -> None:
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            leaving = max(found, key=lambda one: len(one.hosted))
            uid = min(leaving.hosted)
            await train(leaving, uid, 3)
            others = [one for one in found if one is not leaving]
            leaving.keeper.drain()
            with trio.fail_after(10):
                await leaving.left.wait()
            assert not leaving.hosted
            assert spread(others)
            host = next(one for one in others if uid in one.hosted)
            assert host.node.peer.server.experts[uid].hosted.version == 3
            assert changes(host.node.peer.server.experts[uid].epoch) == 2

    trio.run(main)


def test_who_leaves_keeps_no_snapshot_any_more_and_the_host_finds_another_keeper() -> None:
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            host = max(found, key=lambda one: len(one.hosted))
            uid = min(host.hosted)
            await until(lambda: any(uid in one.keeper.kept for one in found))
            leaving = next(one for one in found if uid in one.keeper.kept)
            third = next(one for one in found if one not in (host, leaving))
            leaving.keeper.core.draining = True  # and goes on: it has not given away its own yet
            await train(host, uid, 1)
            await until(lambda: uid in third.keeper.kept and third.keeper.kept[uid].version == 1)
            assert leaving.keeper.kept[uid].version == 0
            assert not host.node.guard.faults()
            assert not leaving.node.guard.faults()

    trio.run(main)


def test_a_host_that_is_asked_for_a_snapshot_of_its_own_expert_offers_its_newest() -> None:
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            host = max(found, key=lambda one: len(one.hosted))
            other = next(one for one in found if one is not host)
            uid = min(host.hosted)
            await train(host, uid, 2)
            offer = await host.keeper.signed_snapshot(uid)
            answer = await ask(other, host, SnapshotWanted(str(uid)))
            assert isinstance(answer, Snapshots)
            assert answer.offer == offer
            assert offer is not None
            assert (offer.version, offer.host) == (2, host.node.me)

    trio.run(main)


def test_offers_that_their_host_did_not_sign_or_that_name_no_expert_are_refused_and_counted() -> (
    None
):
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            liar, victim, third = found
            uid = UIDS[0]
            honest = SnapshotOffer(str(uid), 9, 1, bytes(32), liar.node.me, bytes(64))
            signed = replace(honest, signature=liar.signer.sign(signed_bytes(RUN, honest)))
            foreign = replace(honest, host=third.node.me)
            unknown = replace(honest, uid="ffn7.0.0")
            for offer in (
                honest,
                replace(signed, version=2),
                foreign,
                replace(foreign, signature=liar.signer.sign(signed_bytes(RUN, foreign))),
                replace(unknown, signature=liar.signer.sign(signed_bytes(RUN, unknown))),
            ):
                for message in (Keep(offer), HandOver(offer)):
                    with pytest.raises(CallError) as caught:
                        await ask(liar, victim, message)
                    assert caught.value.code == "bad-request"
            assert victim.node.guard.faults()[liar.node.me] == 10
            assert all(
                offer.host != liar.node.me
                for offer in victim.keeper.kept.values()
                if offer.epoch == 9
            )

    trio.run(main)


async def forged(liar: Keeping, uid: ExpertUID, epoch: int) -> SnapshotOffer:
    """Have a liar sign for an expert that it never had, ready to be fetched."""
    server = liar.node.peer.server
    server.put(liar.keeper.build(uid, epoch, None))
    await train(liar, uid, 9)
    held = await liar.keeper._snapshot(uid)
    assert held is not None
    server.remove(uid)
    liar.keeper._kept[uid] = liar.keeper._own.pop(uid).snapshot
    return held.offer


def test_what_a_stranger_signs_is_neither_kept_nor_adopted_though_it_can_be_fetched() -> None:
    async def main() -> None:
        async with keepers() as (network, found):
            await until(lambda: spread(found))
            host = max(found, key=lambda one: len(one.hosted))
            liar, honest = (one for one in found if one is not host)
            pair = (liar.node.me, honest.node.me)
            uid = next(uid for uid in host.hosted if preference(uid, pair)[0] == honest.node.me)
            await train(host, uid, 5)
            await until(lambda: uid in honest.keeper.kept and honest.keeper.kept[uid].version == 5)
            before = host.node.peer.server.experts[uid].hosted.snapshot()
            liar.keeper.core.room = 0  # it adopts nothing
            lie = await forged(liar, uid, host.node.peer.server.experts[uid].epoch + (1 << 20))
            assert await honest.keeper._state_of(uid, lie, [liar.node.me]), "its bytes are right"
            liar.keeper._shelf._offers[uid] = lie  # what it answers to who asks for the newest
            with pytest.raises(CallError) as caught:
                await ask(liar, honest, Keep(lie))
            assert caught.value.code == "overtaken"
            network.crash(host.node.me)
            honest.keeper.nodes_seen({liar.node.me: 0})
            honest.keeper.suspect(host.node.me)
            await until(lambda: uid in honest.hosted)
            after = honest.node.peer.server.experts[uid].hosted.snapshot()
            assert all(torch.equal(before[name], after[name]) for name in before)

    trio.run(main)


def test_a_snapshot_of_a_host_that_was_replaced_is_not_kept() -> None:
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            old, asked = found[0], found[1]
            uid = next(uid for uid in UIDS if uid not in asked.hosted and uid not in old.hosted)
            late = SnapshotOffer(str(uid), 0, 1, bytes(32), old.node.me, bytes(64))
            late = replace(late, signature=old.signer.sign(signed_bytes(RUN, late)))
            await until(lambda: asked.node.peer.view.hosts(uid, trio.current_time()))
            with pytest.raises(CallError) as caught:
                await ask(old, asked, Keep(late))
            assert caught.value.code == "overtaken"
            assert not old.node.guard.faults().get(PeerID(bytes(old.node.me)))

    trio.run(main)


def test_two_copies_of_one_expert_may_count_the_same_version_and_each_is_fetched_by_its_epoch() -> (
    None
):
    async def main() -> None:
        async with keepers() as (_, found):
            await until(lambda: spread(found))
            host = max(found, key=lambda one: len(one.hosted))
            uid = min(host.hosted)
            await train(host, uid, 2)
            others = [one for one in found if one is not host]
            await until(
                lambda: any(
                    uid in one.keeper.kept and one.keeper.kept[uid].version == 2 for one in others
                )
            )
            keeper = next(one for one in others if uid in one.keeper.kept)
            third = next(one for one in others if one is not keeper)
            kept = keeper.keeper.kept[uid]
            keeper.node.peer.server.put(keeper.keeper.build(uid, kept.epoch + 1, None))
            await train(keeper, uid, 2)
            held = await keeper.keeper._snapshot(uid)
            assert held is not None
            assert held.offer.version == kept.version
            assert held.offer.root != kept.root
            for offer in (kept, held.offer):
                assert await third.keeper._state_of(uid, offer, [keeper.node.me])

    trio.run(main)


def test_who_gives_way_to_a_better_claim_keeps_what_the_expert_knows_now() -> None:
    """Anybody may state any epoch. A liar's costs the expert its place for a while, not what it has learned."""

    async def main() -> None:
        async with keepers(spec=replace(SPEC, snapshot_every_s=600.0)) as (_, found):
            await until(lambda: spread(found))
            host = max(found, key=lambda one: len(one.hosted))
            uid = min(host.hosted)
            await train(host, uid, 5)
            expert = host.node.peer.server.experts[uid]
            before = expert.hosted.snapshot()
            liar = next(one for one in found if one is not host)
            claims = {**liar.keeper.core.hosting, uid: expert.epoch + (1 << 32)}
            liar.node.peer.announcer.announce(claims)
            await until(lambda: uid not in host.hosted)
            await until(lambda: uid in host.keeper.kept and host.keeper.kept[uid].version == 5)
            after = await host.keeper._state_of(uid, host.keeper.kept[uid], [])
            assert all(torch.equal(before[name], after[name]) for name in before)

    trio.run(main)
