from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable

import pytest
import torch
import trio
import trio.testing

from swarm.hosting.compute import ComputeThread
from swarm.hosting.errors import NonFiniteError, StepAheadError, StepPassedError
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.stage_server import StageServer
from tests.swarm.tiny import tensors_of, tiny_dataset, tiny_run

pytestmark = pytest.mark.trio

RUN = tiny_run()


def with_server(stage: int, body: Callable[[StageServer, ComputeThread], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with ComputeThread("test", batch_max=4) as compute:
                await body(StageServer(HostedStage(RUN, stage), compute), compute)

    trio.run(main)


async def held(compute: ComputeThread, nursery: trio.Nursery) -> threading.Event:
    """Occupy the thread until the event is set, so that calls pile up behind it."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(30)

    nursery.start_soon(compute.run, hold)
    await trio.to_thread.run_sync(begun.wait)
    return go_on


def activations(seed: int, *, microbatches: int = 1) -> torch.Tensor:
    return torch.randn(
        2 * microbatches, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_calls_that_wait_are_computed_together_and_answer_as_if_alone() -> None:
    async def body(server: StageServer, compute: ComputeThread) -> None:
        alone = HostedStage(RUN, 1)
        answers: dict[int, torch.Tensor | None] = {}
        counted: list[int] = []

        async def ask(seed: int) -> None:
            x, grad_y = activations(seed), activations(seed + 100)
            answers[seed] = await server.backward(
                x, grad_y, step=0, count=True, on_counted=lambda: counted.append(seed)
            )

        async with trio.open_nursery() as nursery:
            go_on = await held(compute, nursery)
            for seed in range(3):
                nursery.start_soon(ask, seed)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert compute.stats.batches == 2  # the one that held the thread, and all three together
        assert counted == [0, 1, 2]
        for seed in range(3):
            expected = alone.backward(activations(seed), activations(seed + 100), count=True)
            found = answers[seed]
            assert expected is not None
            assert found is not None
            assert torch.allclose(found, expected, rtol=1e-12)
        assert torch.allclose(server.stage.gradient(), alone.gradient(), atol=1e-12)

    with_server(1, body)


def test_one_callers_nan_costs_the_others_nothing() -> None:
    async def body(server: StageServer, compute: ComputeThread) -> None:
        failed: list[int] = []

        async def ask(seed: int) -> None:
            grad_y = activations(seed) * (float("nan") if seed == 1 else 1.0)
            try:
                await server.backward(activations(seed), grad_y, step=0, count=True)
            except NonFiniteError:
                failed.append(seed)

        async with trio.open_nursery() as nursery:
            go_on = await held(compute, nursery)
            for seed in range(3):
                nursery.start_soon(ask, seed)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert failed == [1]
        assert server.stage.counted == 2
        assert torch.isfinite(server.stage.gradient()).all()

    with_server(1, body)


def test_calls_for_another_step_are_refused_when_their_turn_comes() -> None:
    async def body(server: StageServer, compute: ComputeThread) -> None:
        stage = server.stage
        zeros = torch.zeros(stage.parameter_count, dtype=torch.float64)

        async def late() -> None:
            with pytest.raises(StepPassedError) as refusal:
                await server.backward(activations(1), activations(2), step=0, count=True)
            assert (refusal.value.asked, refusal.value.here) == (0, 1)

        with pytest.raises(StepAheadError):
            await server.forward(activations(1), step=1)
        async with trio.open_nursery() as nursery:
            go_on = await held(compute, nursery)
            nursery.start_soon(
                server.exclusive, lambda: stage.apply_step(zeros, clip_scale=1.0, step=0)
            )
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert stage.counted == 0
        assert (await server.forward(activations(1), step=1)).shape == (2, 16, 16)

    with_server(1, body)


def test_the_last_stage_answers_each_call_with_its_own_losses() -> None:
    async def body(server: StageServer, compute: ComputeThread) -> None:
        _, targets = tensors_of(tiny_dataset(RUN).training_batch(0, 0))
        losses: dict[int, tuple[float, ...]] = {}

        async def ask(seed: int, microbatches: int) -> None:
            x = activations(seed, microbatches=microbatches)
            result = await server.loss(x, targets.repeat(microbatches, 1), step=0, count=False)
            assert result.grad_x is not None
            assert result.grad_x.shape == x.shape
            losses[seed] = result.losses

        async with trio.open_nursery() as nursery:
            go_on = await held(compute, nursery)
            for seed, microbatches in ((0, 1), (1, 2), (2, 1)):
                nursery.start_soon(ask, seed, microbatches)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert compute.stats.batches == 2
        assert [len(losses[seed]) for seed in range(3)] == [1, 2, 1]
        for seed in range(3):
            x = activations(seed, microbatches=len(losses[seed]))
            expected = await server.evaluate(x, targets.repeat(len(losses[seed]), 1))
            assert losses[seed] == pytest.approx(expected, rel=1e-12)
        assert server.stage.counted == 0

    with_server(2, body)
