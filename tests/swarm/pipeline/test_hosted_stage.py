from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.averaging.butterfly import clip_scale, reduce_part, squared_norm
from swarm.hosting.errors import NonFiniteError
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.reference import parameter_difference, train_reference
from tests.swarm.tiny import tensors_of, tiny_dataset, tiny_run


def stages_of(run: RunSpec) -> list[HostedStage]:
    return [HostedStage(run, stage) for stage in range(pipeline_of(run).stages)]


def microbatch(run: RunSpec, index: int = 0) -> tuple[Tensor, Tensor]:
    return tensors_of(tiny_dataset(run).training_batch(0, index))


def walk(
    stages: list[HostedStage], x: Tensor, targets: Tensor, *, count: bool = True
) -> tuple[float, ...]:
    """Take one call through all stages and back."""
    inputs = [x]
    for stage in stages[:-1]:
        inputs.append(stage.forward(inputs[-1]))
    result = stages[-1].loss(inputs[-1], targets, count=count)
    grad = result.grad_x
    for stage, stage_input in zip(reversed(stages[:-1]), reversed(inputs[:-1]), strict=True):
        assert grad is not None
        grad = stage.backward(stage_input, grad, count=count)
    assert grad is None
    return result.losses


def gradients_of(stages: list[HostedStage]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for stage in stages:
        named |= stage.layout.views(stage.gradient().clone())
    return named


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.allclose(one[name], two[name], atol=1e-14) for name in one
    )


def test_the_gradient_of_three_chained_stages_is_that_of_one_module() -> None:
    chained, whole = stages_of(tiny_run()), stages_of(tiny_run(stages=1))
    x, targets = microbatch(tiny_run())
    assert walk(chained, x, targets) == pytest.approx(walk(whole, x, targets), rel=1e-14)
    assert close(gradients_of(chained), gradients_of(whole))


def test_two_microbatches_in_one_call_count_as_two_calls_do() -> None:
    run = tiny_run()
    together, apart = stages_of(run), stages_of(run)
    batches = [microbatch(run, index) for index in range(2)]
    losses = walk(together, *(torch.cat(column) for column in zip(*batches, strict=True)))
    assert losses == pytest.approx([walk(apart, *batch)[0] for batch in batches], rel=1e-14)
    assert close(gradients_of(together), gradients_of(apart))
    assert [stage.counted for stage in together] == [stage.counted for stage in apart] == [2, 2, 2]


def test_computing_without_counting_gives_the_same_answer_and_leaves_the_sum_alone() -> None:
    run = tiny_run()
    counting, silent = HostedStage(run, 1), HostedStage(run, 1)
    x, grad_y = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    counted, computed = (
        counting.backward(x, grad_y, count=True),
        silent.backward(x, grad_y, count=False),
    )
    assert counted is not None
    assert computed is not None
    assert torch.equal(counted, computed)
    assert silent.counted == 0
    assert not silent.gradient().any()
    assert counting.gradient().any()


def test_the_caller_keeps_its_tensors_as_they_were() -> None:
    stage = HostedStage(tiny_run(), 1)
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    before = x.clone()
    stage.backward(x, torch.ones_like(x), count=True)
    assert torch.equal(x, before)
    assert not x.requires_grad


@pytest.mark.parametrize("stage_index", [0, 1])
def test_a_gradient_that_is_not_finite_is_refused_and_nothing_is_counted(stage_index: int) -> None:
    run = tiny_run()
    stage = HostedStage(run, stage_index)
    x = microbatch(run)[0] if stage_index == 0 else torch.randn(2, 16, 16, dtype=torch.float64)
    stage.backward(x, torch.ones(2, 16, 16, dtype=torch.float64), count=True)
    before = stage.gradient().clone()
    grad_y = torch.ones(2, 16, 16, dtype=torch.float64)
    grad_y[1, 2, 3] = float("nan")
    with pytest.raises(NonFiniteError):
        stage.backward(x, grad_y, count=True)
    assert torch.equal(stage.gradient(), before)
    assert stage.counted == 1


def test_finite_numbers_that_overflow_are_refused_and_nothing_is_counted() -> None:
    stage = HostedStage(tiny_run(dtype="float32"), 1)
    x = torch.randn(2, 16, 16)
    with pytest.raises(NonFiniteError):
        stage.backward(x, torch.full_like(x, 3e38), count=True)
    assert stage.counted == 0
    assert not stage.gradient().any()


def test_a_gradient_that_would_make_the_sum_overflow_is_refused() -> None:
    """Each is finite by itself; three of them are not."""
    stage = HostedStage(tiny_run(dtype="float32"), 1)
    x = torch.randn(2, 16, 16)
    for _ in range(3):
        with pytest.raises(NonFiniteError):
            stage.backward(x, torch.full_like(x, 1e30), count=True)
    assert stage.counted == 0
    assert not stage.gradient().any()


def test_an_activation_that_is_not_finite_is_refused() -> None:
    run = tiny_run()
    x = torch.full((2, 16, 16), float("inf"), dtype=torch.float64)
    with pytest.raises(NonFiniteError):
        HostedStage(run, 1).forward(x)
    with pytest.raises(NonFiniteError):
        HostedStage(run, 2).loss(x, microbatch(run)[1], count=True)


def train_in_a_swarm(run: RunSpec) -> list[HostedStage]:
    """Two replicas of every stage, each counting every second microbatch, in reverse order."""
    dataset = tiny_dataset(run)
    replicas = [stages_of(run), stages_of(run)]
    for step in range(pipeline_of(run).steps):
        for index in reversed(range(pipeline_of(run).microbatches)):
            walk(replicas[index % 2], *tensors_of(dataset.training_batch(step, index)))
        sums = [
            reduce_part([stage.gradient() for stage in pair])
            for pair in zip(*replicas, strict=True)
        ]
        means = [total / pipeline_of(run).microbatches for total in sums]
        scale = clip_scale(
            [squared_norm(mean) for mean in means], clip_norm=pipeline_of(run).optimizer.clip_norm
        )
        for stages in replicas:
            for stage, mean in zip(stages, means, strict=True):
                stage.apply_step(mean, clip_scale=scale, step=step)
    for one, two in zip(*replicas, strict=True):
        assert all(
            torch.equal(tensor, two.snapshot()[name]) for name, tensor in one.snapshot().items()
        )
    return replicas[0]


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_hosted_steps_equal_torchs_adamw_in_one_process(dtype: str, bound: float) -> None:
    run = tiny_run(dtype=dtype, steps=8)
    parameters: dict[str, Tensor] = {}
    for stage in train_in_a_swarm(run):
        parameters |= stage.parameters()
        assert stage.version == 8
        assert stage.counted == 0
    reference = train_reference(run, tiny_dataset(run))
    assert parameter_difference(parameters, reference.parameters) <= bound
    assert reference.held_out[8] < reference.held_out[0]


def test_a_microbatch_counted_twice_is_seen_in_the_parameters() -> None:
    run = tiny_run(steps=1)
    dataset = tiny_dataset(run)
    [stage] = stages_of(tiny_run(stages=1, steps=1))
    for index in [*range(pipeline_of(run).microbatches), 0]:
        stage.loss(*tensors_of(dataset.training_batch(0, index)), count=True)
    mean = stage.gradient() / pipeline_of(run).microbatches
    stage.apply_step(mean, clip_scale=clip_scale([squared_norm(mean)], clip_norm=1.0), step=0)
    assert parameter_difference(stage.parameters(), train_reference(run, dataset).parameters) > 1e-4


def test_steps_follow_each_other() -> None:
    stage = HostedStage(tiny_run(), 0)
    gradient = torch.zeros(stage.parameter_count, dtype=torch.float64)
    with pytest.raises(LocalProtocolError):
        stage.apply_step(gradient, clip_scale=1.0, step=1)
    stage.apply_step(gradient, clip_scale=1.0, step=0)
    with pytest.raises(LocalProtocolError):
        stage.apply_step(gradient, clip_scale=1.0, step=0)


def test_a_joiner_that_loads_a_snapshot_continues_with_the_same_bits() -> None:
    run = tiny_run()
    old, joiner = HostedStage(run, 1), HostedStage(run, 1)
    gradient = torch.randn(old.parameter_count, dtype=torch.float64)
    old.apply_step(gradient, clip_scale=0.5, step=0)
    joiner.load(old.snapshot())
    for stage in (old, joiner):
        stage.apply_step(gradient, clip_scale=1.0, step=1)
    assert joiner.version == 2
    assert all(
        torch.equal(tensor, old.snapshot()[name]) for name, tensor in joiner.snapshot().items()
    )


def test_a_snapshot_does_not_change_with_later_steps() -> None:
    stage = HostedStage(tiny_run(), 1)
    before = stage.snapshot()
    copies = {name: tensor.clone() for name, tensor in before.items()}
    stage.apply_step(torch.ones(stage.parameter_count, dtype=torch.float64), clip_scale=1.0, step=0)
    assert all(torch.equal(before[name], copies[name]) for name in before)
    assert not torch.equal(
        stage.snapshot()["parameters/layers.1.mlp.up.weight"],
        before["parameters/layers.1.mlp.up.weight"],
    )


def test_the_snapshot_of_another_stage_is_refused_whole() -> None:
    run = tiny_run()
    stage = HostedStage(run, 1)
    before = stage.snapshot()
    with pytest.raises(LocalProtocolError):
        stage.load(HostedStage(run, 2).snapshot())
    assert all(torch.equal(tensor, before[name]) for name, tensor in stage.snapshot().items())


def test_a_batch_that_is_no_whole_number_of_microbatches_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        HostedStage(tiny_run(), 1).backward(
            *torch.zeros(2, 3, 16, 16, dtype=torch.float64), count=True
        )
