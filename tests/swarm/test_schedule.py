from __future__ import annotations

import pytest

from protocols.run import AdamWSpec
from swarm.schedule import is_decayed, learning_rate

SPEC = AdamWSpec(lr=1.0, lr_min=0.1, warmup_steps=4)


def test_the_rate_rises_in_a_line_then_falls_as_a_cosine() -> None:
    rates = [learning_rate(SPEC, step=step, steps=24) for step in range(30)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[14] == pytest.approx(0.55)
    assert rates[24:] == [pytest.approx(0.1)] * 6
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_a_run_without_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate(AdamWSpec(lr=1.0, warmup_steps=0), step=0, steps=1) == 1.0


def test_a_run_shorter_than_its_warm_up_never_reaches_the_full_rate() -> None:
    assert learning_rate(SPEC, step=1, steps=2) == 0.5


@pytest.mark.parametrize(
    ("name", "shape", "decayed"),
    [
        ("layers.0.mlp.up.weight", (64, 16), True),
        ("head.weight", (256, 16), True),
        ("embedding.weight", (256, 16), False),
        ("layers.0.norm.weight", (16,), False),
        ("layers.0.mlp.up.bias", (64,), False),
    ],
)
def test_only_matrices_are_decayed(name: str, shape: tuple[int, ...], decayed: bool) -> None:
    assert is_decayed(name, shape) is decayed
