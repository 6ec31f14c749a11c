from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocols.run import AdamWSpec
from swarm.hosting.adamw import FlatAdamW

ELEMENTS = 300_001  # enough that torch gives several threads a share each, and not an even one


def stepped(dtype: torch.dtype, *, threads: int) -> list[Tensor]:
    """Return parameters and moments after three steps."""
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(ELEMENTS, dtype=dtype, generator=generator)
    optimizer = FlatAdamW(AdamWSpec(), parameters, decayed_elements=200_000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for step in range(3):
            optimizer.apply(
                torch.randn(ELEMENTS, dtype=dtype, generator=generator), rate=1e-3, step=step
            )
    finally:
        torch.set_num_threads(before)
    return [parameters, optimizer.exp_avg, optimizer.exp_avg_sq]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_gives_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    one, two, three = (stepped(dtype, threads=threads) for threads in (1, 2, 3))
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three, strict=True)
    )


def test_it_does_what_torchs_adamw_does() -> None:
    spec = AdamWSpec()
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(10, dtype=torch.float64, generator=generator)
    theirs = [torch.nn.Parameter(part.clone()) for part in torch.split(ours, 5)]
    groups = [
        {"params": [theirs[0]], "weight_decay": spec.weight_decay},
        {"params": [theirs[1]], "weight_decay": 0.0},
    ]
    witness = torch.optim.AdamW(groups, lr=1e-3, betas=(spec.beta1, spec.beta2), eps=spec.eps)
    optimizer = FlatAdamW(spec, ours, decayed_elements=5)
    for step in range(20):
        gradient = torch.randn(10, dtype=torch.float64, generator=generator)
        for parameter, part in zip(theirs, torch.split(gradient, 5), strict=True):
            parameter.grad = part.clone()
        witness.step()
        optimizer.apply(gradient, rate=1e-3, step=step)
    assert torch.allclose(
        ours, torch.cat([parameter.detach() for parameter in theirs]), rtol=1e-13, atol=1e-15
    )
