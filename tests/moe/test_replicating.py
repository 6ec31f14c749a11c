"""Replicas of experts: real snapshots, calls and averagings over a network in memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import trio

import moe.replicating
from moe.network import Answered
from protocols.errors import RemoteProtocolError
from protocols.experts.messages import EXPERT_SERVICE, Average, ReplicaWanted, encode_message
from protocols.experts.uid import ExpertUID
from swarm.calls import CallError, Refusal
from swarm.tensors.wire import to_wire
from tests.moe.keepers import SPEC, UIDS, WIDTH, Keeping, keepers, spread, train, until
from tests.moe.nodes import in_thread

pytestmark = pytest.mark.trio
REPLICATED = replace(SPEC, replicas=1, replicas_average_s=0.2)


@pytest.fixture(autouse=True)
def _measured_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe.replicating, "MEASURED_EVERY_S", 0.1)


def replica_of(found: list[Keeping], uid: ExpertUID) -> Keeping | None:
    return next((one for one in found if uid in one.keeper.replicas.core.serving), None)


def flat(one: Keeping, uid: ExpertUID) -> torch.Tensor:
    return one.node.peer.server.experts[uid].hosted.flat.detach().clone()


def host_of(found: list[Keeping], uid: ExpertUID) -> Keeping:
    return next(one for one in found if uid in one.hosted)


async def all_replicated(found: list[Keeping]) -> None:
    with trio.fail_after(40):
        await until(lambda: spread(found))
        while not all(replica_of(found, uid) for uid in UIDS):  # noqa: ASYNC110 - several nodes
            await trio.sleep(0.05)


def test_host_and_replica_step_each_by_itself_and_are_averaged() -> None:
    async def main() -> None:
        async with keepers(spec=REPLICATED) as (_, made):
            found, uid = list(made), UIDS[0]
            await all_replicated(found)
            host, replica = host_of(found, uid), replica_of(found, uid)
            assert replica is not None
            assert replica is not host
            before = flat(host, uid)
            await train(host, uid, 3)
            await train(replica, uid, 3)
            with trio.fail_after(10):
                while True:
                    a, b = flat(host, uid), flat(replica, uid)
                    if torch.equal(a, b) and not torch.equal(a, before):
                        break
                    await trio.sleep(0.05)
            assert host.keeper.core.hosting[uid] == replica.keeper.replicas.core.serving[uid].epoch
            assert uid not in replica.hosted, "a replica is no host"
            assert replica.node.peer.server.experts[uid].stats.steps == 3

    trio.run(main)


def test_calls_go_to_both_and_go_on_when_the_host_is_gone() -> None:
    async def main() -> None:
        async with keepers(spec=REPLICATED) as (network, made):
            found = list(made)
            await all_replicated(found)
            # A caller that is neither the host nor the replica of this expert.
            uid, host, replica, caller = next(
                (uid, host, replica, caller)
                for uid in UIDS
                for host in found
                for replica in found
                for caller in found
                if host is host_of(found, uid) and replica is replica_of(found, uid)
                if caller not in (host, replica)
            )
            both = {host.node.me, replica.node.me}
            view = caller.node.peer.view
            await until(lambda: {c.peer for c in view.answering(uid, trio.current_time())} == both)

            async def call() -> Answered | None:
                x = torch.randn(4, WIDTH)
                (answered,) = await in_thread(
                    lambda: caller.node.peer.network.forward([(uid, x)], out_row=(WIDTH,))
                )
                if answered is not None:
                    await in_thread(lambda: caller.node.peer.network.backward([(answered, x, x)]))
                return answered

            asked = [answered.peer for _ in range(40) if (answered := await call()) is not None]
            assert set(asked) == both, "calls are shared"
            network.crash(host.node.me)
            later = [answered.peer for _ in range(8) if (answered := await call()) is not None]
            assert replica.node.me in later, "before anybody has adopted it"

    trio.run(main)


def test_nobody_makes_itself_a_replica_and_what_is_no_vector_of_the_expert_is_blamed() -> None:
    async def main() -> None:
        async with keepers(spec=REPLICATED) as (_, made):
            found, uid = list(made), UIDS[0]
            await all_replicated(found)
            host, replica = host_of(found, uid), replica_of(found, uid)
            assert replica is not None
            stranger = next(one for one in found if one not in (host, replica))
            epoch, vector = host.keeper.core.hosting[uid], flat(host, uid)

            async def average(asker: Keeping, sent: torch.Tensor, rows: int = 1) -> None:
                await asker.node.caller.call(
                    host.node.me,
                    EXPERT_SERVICE,
                    encode_message(Average(str(uid), epoch, rows)),
                    [to_wire(sent)],
                    deadline_s=5.0,
                )

            with pytest.raises(CallError, match="no such replica"):
                await average(stranger, vector)
            host.keeper.replicas.core.average_s = 0.0  # as often as it likes
            before = flat(host, uid)
            for bad in (vector[1:], vector.double(), torch.full_like(vector, torch.nan)):
                with pytest.raises((CallError, RemoteProtocolError)):
                    await average(replica, bad)
            with pytest.raises((CallError, RemoteProtocolError)):
                await average(replica, 1e6 * vector)
            assert torch.equal(flat(host, uid), before)
            # However many rows it says it has trained on, a replica counts for no more than the host.
            await average(replica, 2 * before, rows=1 << 50)
            assert torch.allclose(flat(host, uid), 1.5 * before, rtol=1e-4)
            host.keeper.replicas.core.average_s = 60.0
            after = flat(host, uid)
            for _ in range(3):  # the first may still count
                with suppress(CallError):
                    await average(replica, torch.zeros_like(after), rows=1 << 50)
            assert torch.linalg.vector_norm(flat(host, uid)) > 0.49 * torch.linalg.vector_norm(
                after
            )
            offer = await host.keeper.signed_snapshot(uid)
            assert offer is not None
            with pytest.raises((CallError, RemoteProtocolError, Refusal)):
                await stranger.node.caller.call(
                    replica.node.me,
                    "experts",
                    encode_message(ReplicaWanted(offer)),
                    deadline_s=5.0,
                )

    trio.run(main)


def test_a_replica_that_leaves_is_named_no_more_at_once() -> None:
    async def main() -> None:
        async with keepers(spec=REPLICATED) as (_, made):
            found = list(made)
            await all_replicated(found)
            leaving = max(found, key=lambda one: len(one.keeper.replicas.core.serving))
            served = set(leaving.keeper.replicas.core.serving)
            assert served
            leaving.keeper.drain()
            with trio.fail_after(15):
                await leaving.left.wait()
            assert not leaving.node.peer.server.experts
            others = [one for one in found if one is not leaving]
            named = {of for one in others for of in one.keeper.replicas.named.values()}
            assert leaving.node.me not in {peer for of in named for peer in of}
            assert spread(others)

    trio.run(main)
