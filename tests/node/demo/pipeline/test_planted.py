"""The planted bug does what it says: one microbatch twice in the gradient, once in the books."""

from __future__ import annotations

import pytest
import torch

from node.demo.scenarios.pipeline import planted
from swarm.pipeline.hosted_stage import HostedStage
from tests.swarm.tiny import tensors_of, tiny_dataset, tiny_run


def test_one_microbatch_is_added_twice_and_the_books_stay_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("backward", "loss"):  # put back when the test is over
        monkeypatch.setattr(HostedStage, name, getattr(HostedStage, name))
    monkeypatch.setattr(planted, "_AFTER_VERSION", 0)
    run = tiny_run(stages=1)
    honest, buggy = HostedStage(run, 0), HostedStage(run, 0)
    first, second = (tensors_of(tiny_dataset(run).training_batch(0, i)) for i in (0, 1))
    honest.loss(*first, count=True)
    one = honest.gradient().clone()
    honest.loss(*second, count=True)
    both = honest.gradient().clone()
    planted.double_count()
    buggy.loss(*first, count=True)
    assert torch.allclose(buggy.gradient(), 2 * one)
    assert buggy.counted == 1
    buggy.loss(*second, count=True)
    assert torch.allclose(buggy.gradient(), one + both)
    assert buggy.counted == 2
