from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protocols.run import AdamWSpec, SgdSpec
from swarm.hosting.module import HostedModule
from swarm.hosting.optimizers import FlatAdamW, FlatSgd, TorchOptimizer

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


def test_sgd_is_what_torch_computes() -> None:
    spec = SgdSpec(kind="sgd", momentum=0.9, weight_decay=0.01)
    ours = torch.randn(64, dtype=torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = FlatSgd(spec, ours)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        gradient = torch.randn(64, dtype=torch.float64)
        optimizer.apply(gradient, rate=0.1, step=step)
        theirs.grad = gradient
        reference.step()
    assert torch.allclose(ours, theirs.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adam, torch.optim.Adagrad])
def test_any_optimizer_of_torch_goes_on_from_a_snapshot(kind: type[torch.optim.Optimizer]) -> None:
    """Two that take the same steps, of which one is loaded half way from the other's vectors, end equal."""
    module, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    hosted = HostedModule(module, lambda vector, _: TorchOptimizer(vector, kind))
    loaded = HostedModule(other, lambda vector, _: TorchOptimizer(vector, kind))
    gradients = torch.randn(6, hosted.flat.numel())
    for gradient in gradients[:3]:
        hosted.apply(gradient, rate=0.01)
    loaded.load(hosted.snapshot())
    for gradient in gradients[3:]:
        hosted.apply(gradient.clone(), rate=0.01)
        loaded.apply(gradient.clone(), rate=0.01)
    assert torch.equal(hosted.flat, loaded.flat)
    assert not torch.equal(hosted.flat, torch.zeros_like(hosted.flat))


def test_an_optimizer_of_torch_computes_what_it_computes_alone() -> None:
    module = torch.nn.Linear(4, 2)
    alone = torch.nn.Parameter(
        torch.cat([module.weight.detach().reshape(-1), module.bias.detach()])
    )
    hosted = HostedModule(module, lambda vector, _: TorchOptimizer(vector, torch.optim.Adam))
    reference = torch.optim.Adam([alone], lr=0.01)
    assert torch.equal(hosted.flat, alone.detach())
    for _ in range(3):
        alone.grad = torch.randn(10)
        hosted.apply(alone.grad.clone(), rate=0.01)
        reference.step()
    assert torch.allclose(hosted.flat, alone.detach(), rtol=1e-6, atol=1e-7)
