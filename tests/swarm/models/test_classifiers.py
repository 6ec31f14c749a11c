"""Whole models: shapes, initial weights, and what of them is averaged."""

import pytest
import torch

from protocols.ids import PeerID
from protocols.run import ByteTransformerSpec, ConvnetSpec, InstalledModelSpec, MlpSpec
from protocols.run.model import ModelSpec
from swarm.models.classifier import SampleShape, peer_seed
from swarm.models.registry import UnknownModelError, build_whole

SHAPE = SampleShape(channels=3, height=9, width=7, classes=5)
SPECS: list[ModelSpec] = [
    MlpSpec(kind="mlp", layers=1),
    MlpSpec(kind="mlp", layers=5, width=16),
    ConvnetSpec(kind="convnet", channels=(4, 8, 8, 8, 8)),
    ConvnetSpec(kind="convnet", channels=(4,), norm=True, dtype="float64"),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_sample_becomes_a_logit_for_each_class(spec: ModelSpec) -> None:
    module = build_whole(spec, SHAPE, seed=1)
    dtype = next(module.parameters()).dtype
    assert module(torch.randn(6, 3, 9, 7, dtype=dtype)).shape == (6, 5)


@pytest.mark.parametrize("spec", SPECS)
def test_weights_depend_on_the_seed_alone(spec: ModelSpec) -> None:
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    first, again, other = (build_whole(spec, SHAPE, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_signals_keep_their_size_through_a_deep_network() -> None:
    module = build_whole(
        MlpSpec(kind="mlp", layers=30, width=256), SampleShape(1, 16, 16, 10), seed=1
    )
    samples = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    assert 0.1 < float(module(samples).detach().std()) < 10


def test_norm_statistics_are_buffers_not_parameters() -> None:
    module = build_whole(ConvnetSpec(kind="convnet", channels=(4,), norm=True), SHAPE, seed=1)
    names = {name for name, _ in module.named_parameters()}
    assert {name for name, _ in module.named_buffers()} == {
        f"blocks.0.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert not any("running" in name for name in names)
    assert "blocks.0.norm.weight" in names


def test_each_peer_has_a_start_of_its_own() -> None:
    seeds = {peer_seed(seed, PeerID(peer)) for seed in (1, 2) for peer in (b"one", b"two")}
    assert len(seeds) == 4


def test_other_models_are_refused() -> None:
    for spec in (ByteTransformerSpec(), InstalledModelSpec(kind="nobody-has-this")):
        with pytest.raises(UnknownModelError):
            build_whole(spec, SHAPE, seed=1)
