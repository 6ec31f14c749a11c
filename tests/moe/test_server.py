"""What a host answers, also to callers that are late, careless or hostile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import trio
from torch import Tensor

from protocols.experts.messages import (
    EXPERT_SERVICE,
    Backward,
    Forward,
    Message,
    Output,
    Probe,
    Stepped,
    decode_message_untrusted,
    encode_message,
)
from protocols.experts.uid import ExpertUID
from swarm.calls import Answer, CallError
from swarm.tensors.wire import from_wire, to_wire
from tests.moe.nodes import GRID, RUN, SGD, WIDTH, Node, expert_of, nodes

pytestmark = pytest.mark.trio
UID = ExpertUID("ffn", (0, 1))
FORWARD = Forward(str(UID), 1)


def rows(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


async def ask(
    asker: Node, host: Node, message: Message, *tensors: Tensor
) -> tuple[Message, Sequence[Tensor]]:
    answer: Answer = await asker.caller.call(
        host.me,
        EXPERT_SERVICE,
        encode_message(message),
        [to_wire(t) for t in tensors],
        deadline_s=5.0,
    )
    return decode_message_untrusted(answer.message), [from_wire(wire) for wire in answer.tensors]


async def refused(asker: Node, host: Node, message: Message, *tensors: Tensor) -> str:
    with pytest.raises(CallError) as caught:
        await ask(asker, host, message, *tensors)
    return caught.value.code


def test_forward_keeps_nothing_and_backward_steps_at_once() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            module = await host.serve(UID)
            said, (y,) = await ask(asker, host, FORWARD, rows())
            assert said == Output(1, 0)
            torch.testing.assert_close(y, expert_of(UID)(rows()).detach())
            said, (grad_x,) = await ask(
                asker, host, Backward(str(UID), 1, 0), rows(), torch.ones(4, WIDTH)
            )
            assert said == Stepped(1, 1)
            before = expert_of(UID)
            x = rows().requires_grad_()
            grads = torch.autograd.grad(before(x).sum(), [x, *before.parameters()])
            torch.testing.assert_close(grad_x, grads[0])
            for old, new, grad in zip(
                before.parameters(), module.parameters(), grads[1:], strict=True
            ):
                torch.testing.assert_close(new, old - 0.1 * grad)

    trio.run(main)


def test_requests_that_wait_together_are_one_step_with_their_mean_gradient() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            module = await host.serve(UID)
            gate = trio.Event()

            async def backward(seed: int) -> None:
                await gate.wait()
                call = Backward(str(UID), 1, 0)
                _, (grad_x,) = await ask(
                    asker, host, call, rows(seed, seed), torch.ones(seed, WIDTH)
                )
                assert len(grad_x) == seed

            hold = trio.Event()

            def block() -> None:
                trio.from_thread.run(hold.wait, trio_token=token)

            token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.compute.run, block)
                for seed in (1, 2, 3):
                    nursery.start_soon(backward, seed)
                gate.set()
                while host.compute.waiting < 3:  # noqa: ASYNC110 - another thread's queue
                    await trio.sleep(0.005)
                hold.set()
            stats = host.peer.server.experts[UID].stats
            assert (stats.steps, stats.joined, stats.backward_rows) == (1, 3, 6)
            before = expert_of(UID)
            x = torch.cat([rows(seed, seed) for seed in (1, 2, 3)])
            grads = torch.autograd.grad(before(x).sum() / 3, list(before.parameters()))
            for old, new, grad in zip(before.parameters(), module.parameters(), grads, strict=True):
                torch.testing.assert_close(new, old - 0.1 * grad)

    trio.run(main)


def test_one_callers_nan_spoils_nobody_elses_answer() -> None:
    async def main() -> None:
        async with nodes(3) as (_, (good, bad, host)):
            module = await host.serve(UID)
            hold = trio.Event()
            token = trio.lowlevel.current_trio_token()
            nan = torch.full((2, WIDTH), torch.nan)

            async def careless() -> None:
                assert (
                    await refused(bad, host, Backward(str(UID), 1, 0), rows(2), nan)
                    == "bad-request"
                )

            async def honest() -> None:
                said, _ = await ask(
                    good, host, Backward(str(UID), 1, 0), rows(), torch.ones(4, WIDTH)
                )
                assert isinstance(said, Stepped)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    host.compute.run, lambda: trio.from_thread.run(hold.wait, trio_token=token)
                )
                nursery.start_soon(careless)
                nursery.start_soon(honest)
                while host.compute.waiting < 2:  # noqa: ASYNC110 - another thread's queue
                    await trio.sleep(0.005)
                hold.set()
            stats = host.peer.server.experts[UID].stats
            assert (stats.steps, stats.failed) == (1, 1)
            assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
            assert host.guard.faults()[bad.me] == 1
            assert good.me not in host.guard.faults()
            assert await refused(bad, host, FORWARD, nan) == "bad-request"

    trio.run(main)


def test_finite_numbers_that_are_too_large_blame_nobody() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            assert await refused(asker, host, FORWARD, torch.full((1, WIDTH), 3e38)) == "diverged"
            assert not host.guard.faults()

    trio.run(main)


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [torch.zeros(4, WIDTH), torch.zeros(4, WIDTH)],
        [torch.zeros(4, WIDTH + 1)],
        [torch.zeros(4, WIDTH, dtype=torch.float64)],
        [torch.zeros(0, WIDTH)],
        [torch.zeros(WIDTH)],
        [torch.tensor(1.0)],
    ],
)
def test_rows_of_another_shape_or_dtype_are_refused_and_counted(tensors: list[Tensor]) -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            assert await refused(asker, host, FORWARD, *tensors) == "bad-request"
            assert host.guard.faults()[asker.me] == 1

    trio.run(main)


def test_a_gradient_of_another_shape_or_version_is_refused() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            for message, tensors in (
                (Backward(str(UID), 1, 0), [rows()]),
                (Backward(str(UID), 1, 0), [rows(), rows(3)]),
                (Probe(), []),
            ):
                assert await refused(asker, host, message, *tensors) == "bad-request"
            never = Backward(str(UID), 1, 7)
            assert await refused(asker, host, never, rows(), rows()) == "overtaken"
            assert host.peer.server.experts[UID].stats.steps == 0

    trio.run(main)


def test_a_gradient_that_is_too_stale_is_refused_and_staleness_is_measured() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            for _ in range(9):  # staleness_max is 8
                await ask(asker, host, Backward(str(UID), 1, 0), rows(), rows())
            assert (
                await refused(asker, host, Backward(str(UID), 1, 0), rows(), rows()) == "overtaken"
            )
            stats = host.peer.server.experts[UID].stats
            assert (stats.steps, stats.stale_refused, stats.staleness_max) == (9, 1, 8)
            assert 0 < stats.staleness < 8

    trio.run(main)


def test_an_expert_that_is_not_here_frozen_or_of_an_older_epoch_is_not_computed() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            newer: list[tuple[ExpertUID, int]] = []
            host.peer.server._newer = lambda uid, epoch: newer.append((uid, epoch))
            assert await refused(asker, host, Forward("ffn.1.1", 1), rows()) == "not-here"
            assert await refused(asker, host, Forward(str(UID), 2), rows()) == "not-here"
            assert newer == [(UID, 2)]
            host.peer.server.experts[UID].frozen = True
            assert await refused(asker, host, FORWARD, rows()) == "draining"

    trio.run(main)


def test_an_expert_continues_from_a_snapshot() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.serve(UID)
            for _ in range(3):
                await ask(asker, host, Backward(str(UID), 1, 0), rows(), rows())
            state = host.peer.server.experts[UID].hosted.snapshot()
            again = host.peer.server.add(
                UID, expert_of(UID), SGD, row=(WIDTH,), epoch=2, state=state
            )
            assert again.hosted.version == 3
            said, _ = await ask(asker, host, Forward(str(UID), 2), rows())
            assert said == Output(2, 3)
            assert (
                await refused(asker, host, Backward(str(UID), 1, 3), rows(), rows()) == "overtaken"
            )

    trio.run(main)


def test_a_module_without_parameters_is_an_expert_too() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, host)):
            await host.peer.host(UID, torch.nn.Identity, SGD, row=(WIDTH,))
            _, (y,) = await ask(asker, host, FORWARD, rows())
            assert torch.equal(y, rows())
            _, (grad,) = await ask(asker, host, Backward(str(UID), 1, 0), rows(), rows(4, 9))
            assert torch.equal(grad, rows(4, 9))

    trio.run(main)


def test_records_that_are_no_statements_are_counted_against_their_author() -> None:
    async def main() -> None:
        async with nodes(2) as (_, (asker, liar)):
            await liar.peer.search._directory.announce(f"{RUN}/experts/ffn.0", b"\x81", 60.0)
            found = await asker.peer.search.find(GRID, [[0.0, 0.0]] * 2, beam=4)
            assert found == ()
            assert asker.guard.faults()[liar.me] == 1

    trio.run(main)
