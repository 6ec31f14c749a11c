from __future__ import annotations

import dataclasses

import pytest
import torch

from swarm.pipeline.reference import parameter_difference, train_reference
from tests.swarm.tiny import tiny_dataset, tiny_run


def test_the_reference_learns_and_reports_at_the_asked_steps() -> None:
    run = tiny_run(stages=1, steps=20)
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, evaluate_every=8))
    seen = []
    result = train_reference(
        run, tiny_dataset(run), on_step=lambda step, loss: seen.append((step, loss))
    )
    assert sorted(result.held_out) == [0, 8, 16, 20]
    assert result.held_out[20] < result.held_out[0] - 0.5
    assert [step for step, _ in seen] == list(range(1, 21))
    assert tuple(loss for _, loss in seen) == result.losses
    assert result.tokens_per_second > 0


def test_the_reference_is_the_same_every_time() -> None:
    run = tiny_run(stages=1, steps=2)
    one, two = (train_reference(run, tiny_dataset(run)).parameters for _ in range(2))
    assert parameter_difference(one, two) == 0.0


def test_the_difference_is_that_of_the_worst_tensor() -> None:
    reference = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.0])}
    assert parameter_difference(found, reference) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="different names"):
        parameter_difference({"a": found["a"]}, reference)
