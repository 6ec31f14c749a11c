from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from protocols.errors import LocalProtocolError
from protocols.run import ByteTransformerSpec, InstalledModelSpec
from swarm.models import byte_transformer, registry
from swarm.models.cut import cut_of
from swarm.models.registry import UnknownModelError, build_stage

SPEC = ByteTransformerSpec(layers=3, width=16, heads=2, context=16)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_layer_starts_with_the_same_weights_however_the_model_is_cut(stages: int) -> None:
    torch.manual_seed(stages)  # what the global generator says must not matter
    whole = build_stage(SPEC, 1, 0, 5).state_dict()
    found: dict[str, Tensor] = {}
    for stage in range(stages):
        found |= build_stage(SPEC, stages, stage, 5).state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_stage(SPEC, 1, 0, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights() -> None:
    one, two = build_stage(SPEC, 1, 0, 1).state_dict(), build_stage(SPEC, 1, 0, 2).state_dict()
    assert not any(torch.equal(one[name], two[name]) for name in one)


def test_both_precisions_start_from_the_same_numbers() -> None:
    single = build_stage(SPEC, 1, 0, 5).state_dict()
    double = build_stage(dataclasses.replace(SPEC, dtype="float64"), 1, 0, 5).state_dict()
    assert all(torch.equal(single[name].double(), double[name]) for name in single)


def test_the_demos_model_has_at_most_a_million_parameters_and_no_biases() -> None:
    module = build_stage(ByteTransformerSpec(), 1, 0, 0)
    assert sum(parameter.numel() for parameter in module.parameters()) == 655_360
    assert all(parameter.dim() == 2 for parameter in module.parameters())


def test_the_first_loss_is_that_of_guessing() -> None:
    tokens = torch.randint(
        0, 256, (2, 17), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    losses = build_stage(SPEC, 1, 0, 0).loss(tokens[:, :-1], tokens[:, 1:])  # (2,)
    assert losses.shape == (2,)
    assert losses.mean().item() == pytest.approx(math.log(256), abs=0.1)


def test_no_token_sees_those_after_it() -> None:
    module = build_stage(SPEC, 1, 0, 0)
    tokens = torch.zeros(1, 16, dtype=torch.uint8)
    changed = tokens.clone()
    changed[0, 9] = 1
    one, two = module(tokens), module(changed)
    assert torch.equal(one[0, :9], two[0, :9])
    assert not torch.equal(one[0, 9:], two[0, 9:])


def test_chained_stages_give_the_loss_of_the_whole() -> None:
    tokens = torch.randint(
        0, 256, (2, 17), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    x, targets = tokens[:, :-1], tokens[:, 1:]
    whole = build_stage(SPEC, 1, 0, 5).loss(x, targets)
    first, middle, last = (build_stage(SPEC, 3, stage, 5) for stage in range(3))
    assert torch.equal(last.loss(middle(first(x)), targets), whole)


def test_earlier_stages_take_the_layers_that_do_not_divide() -> None:
    cuts = [cut_of(layers=8, stages=3, stage=stage) for stage in range(3)]
    assert [list(cut.layers) for cut in cuts] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [(cut.is_first, cut.is_last) for cut in cuts] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_more_stages_than_layers_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        cut_of(layers=2, stages=3, stage=0)


def test_a_model_installed_locally_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def load(self) -> object:
            return lambda spec, cut, seed: byte_transformer.build(SPEC, cut, seed)

    def find(*, group: str, name: str) -> list[Installed]:
        return [Installed()] if (group, name) == ("murmura.models", "from-a-package") else []

    monkeypatch.setattr(registry, "entry_points", find)
    module = build_stage(InstalledModelSpec(kind="from-a-package", layers=3), 3, 1, 0)
    assert isinstance(module, byte_transformer.ByteTransformerStage)


def test_a_model_that_is_not_installed_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnknownModelError, match="install the package"):
        build_stage(InstalledModelSpec(kind="not-here"), 1, 0, 0)
