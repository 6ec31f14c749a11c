"""Outer parameters: against torch's own optimizer, against plain averaging, and what replicas agree on."""

from __future__ import annotations

import math

import pytest
import torch

from protocols.collective.fragments import cut
from protocols.collective.settings import CollectiveSpec
from swarm.collective.outer import Fragments, Outer
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.flat import FlatLayout

SHAPES = {"embedding.weight": (5, 3), **{f"layers.{i}.weight": (4, 3) for i in range(3)}, "bias": (2,)}  # fmt: skip
LAYOUT = FlatLayout(SHAPES)
SIZES = [(name, math.prod(shape)) for name, shape in SHAPES.items()]


def fragments_of(count: int) -> Fragments:
    return Fragments(LAYOUT, cut(SIZES, count=count, order="strided"))


def vector(seed: int) -> torch.Tensor:
    return torch.randn(LAYOUT.elements, generator=torch.Generator().manual_seed(seed))


def test_outer_steps_are_torchs_nesterov_sgd() -> None:
    spec = CollectiveSpec(outer_rate=0.3, outer_momentum=0.8)
    outer = Outer(spec, fragments_of(1), vector(0))
    parameter = torch.nn.Parameter(fragments_of(1).gather(vector(0), 0))
    sgd = torch.optim.SGD([parameter], lr=0.3, momentum=0.8, nesterov=True)
    for seed in range(1, 6):
        mean = vector(seed)
        outer.step(0, mean)
        parameter.grad = mean.clone()
        sgd.step()
    torch.testing.assert_close(outer.fragments.gather(outer.parameters, 0), parameter.detach())


@pytest.mark.parametrize("count", [1, 3])
def test_rate_1_without_momentum_overlap_and_mixing_is_plain_averaging(count: int) -> None:
    spec = CollectiveSpec(outer_rate=1.0, outer_momentum=0.0, fragments=count)
    outer = Outer(spec, fragments_of(count), vector(0))
    locals_ = [vector(1), vector(2), vector(3)]
    expected = torch.stack(locals_).mean(0)
    for fragment in range(count):
        differences = [outer.difference(local, fragment) for local in locals_]
        outer.step(fragment, torch.stack(differences).mean(0))
        for local in locals_:
            outer.mix_into(local, fragment, kept=spec.kept_share(overlapped=False))
    for local in locals_:
        torch.testing.assert_close(local, expected)
        assert torch.equal(local, outer.parameters)


def test_two_replicas_with_the_same_data_are_one() -> None:
    spec = CollectiveSpec(fragments=3, overlap_steps=1)
    alone, one, other = (Outer(spec, fragments_of(3), vector(0)) for _ in range(3))
    local, twin, third = vector(1), vector(1), vector(1)
    for fragment in range(3):
        own = alone.difference(local, fragment)
        mean = (one.difference(twin, fragment) + other.difference(third, fragment)) / 2
        for outer, model, gradient in (
            (alone, local, own),
            (one, twin, mean),
            (other, third, mean),
        ):
            outer.step(fragment, gradient)
            outer.mix_into(model, fragment, kept=spec.kept_share(overlapped=True))
    assert torch.equal(local, twin)
    assert torch.equal(twin, third)
    assert torch.equal(alone.parameters, one.parameters)


def test_a_step_changes_its_own_fragment_alone() -> None:
    outer = Outer(CollectiveSpec(fragments=3), fragments_of(3), vector(0))
    outer.step(1, torch.ones(outer.fragments.size(1)))
    changed = {
        name
        for name, view in LAYOUT.views(outer.parameters).items()
        if not torch.equal(view, LAYOUT.views(vector(0))[name])
    }
    assert changed == {"layers.1.weight", "bias"}


def test_the_last_step_is_the_mean_of_the_peers_parameters() -> None:
    outer = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    outer.step(0, vector(4))
    locals_ = [vector(1), vector(2)]
    mean = torch.stack([outer.difference(local, 0) for local in locals_]).mean(0)
    outer.step(0, mean, last=True)
    torch.testing.assert_close(outer.parameters, torch.stack(locals_).mean(0))


def test_mixing_keeps_a_share_of_the_peers_own() -> None:
    outer = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    local = vector(1)
    outer.mix_into(local, 0, kept=0.25)
    torch.testing.assert_close(local, 0.25 * vector(1) + 0.75 * vector(0))


def test_what_a_peer_has_learned_stays_when_it_adopts_the_outer_state_of_others() -> None:
    behind = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    ahead = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    ahead.step(0, vector(5))
    local = vector(1)
    before = behind.difference(local, 0)
    behind.adopt(0, ahead.state(0), local)
    assert torch.equal(behind.parameters, ahead.parameters)
    assert torch.equal(behind.momentum, ahead.momentum)
    torch.testing.assert_close(behind.difference(local, 0), before)


def test_what_counts_in_the_state_of_others_is_not_in_the_next_outer_gradient() -> None:
    behind = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    ahead = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    local = vector(1)
    handed_in = behind.difference(local, 0)
    local += 0.25  # trained on
    ahead.step(0, handed_in)
    behind.adopt(0, ahead.state(0), local, counted=handed_in)
    torch.testing.assert_close(behind.difference(local, 0), torch.full_like(handed_in, -0.25))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_a_step_that_would_not_be_finite_changes_nothing(bad: float) -> None:
    outer = Outer(CollectiveSpec(outer_rate=10.0), fragments_of(1), vector(0))
    mean = torch.zeros(LAYOUT.elements)
    mean[3] = bad
    with pytest.raises(NonFiniteError):
        outer.step(0, mean)
    assert torch.equal(outer.parameters, vector(0))
    assert not outer.momentum.any()


def test_a_model_that_is_not_finite_has_no_outer_gradient() -> None:
    outer = Outer(CollectiveSpec(), fragments_of(1), vector(0))
    local = vector(1)
    local[2] = math.nan
    with pytest.raises(NonFiniteError):
        outer.difference(local, 0)
