from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from protocols.run import ByteTransformerSpec
from swarm.pipeline.hosted_stage import HostedStage
from swarm.state.export import ExportError, export_model, load_model, sample
from tests.swarm.tiny import tensors_of, tiny_dataset, tiny_run

RUN = tiny_run(dtype="float32")


def exported(path: Path) -> Path:
    export_model(
        path, RUN, step=3, stages=[HostedStage(RUN, stage).parameters() for stage in (2, 0, 1)]
    )
    return path


def test_the_exported_model_is_the_trained_one(tmp_path: Path) -> None:
    spec, module = load_model(exported(tmp_path / "model.safetensors"))
    assert spec == RUN.model
    x, targets = tensors_of(tiny_dataset(RUN).held_out_batch(0))
    first, middle, last = (HostedStage(RUN, stage) for stage in range(3))
    expected = last.evaluate(middle.forward(first.forward(x)), targets)
    assert module.loss(x, targets).mean().item() == pytest.approx(expected[0], rel=1e-6)


def test_the_same_model_gives_the_same_bytes_and_no_partial_file_is_left(tmp_path: Path) -> None:
    one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_model_with_a_stage_missing_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="missing"):
        export_model(tmp_path / "model", RUN, step=0, stages=[HostedStage(RUN, 1).parameters()])
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_width_are_not_written(tmp_path: Path) -> None:
    wide = dataclasses.replace(
        RUN, model=ByteTransformerSpec(layers=3, width=32, heads=2, context=16)
    )
    with pytest.raises(ExportError):
        export_model(
            tmp_path / "model",
            RUN,
            step=0,
            stages=[HostedStage(wide, stage).parameters() for stage in range(3)],
        )


@pytest.mark.parametrize("contents", [b"", b"not a model", b"\x80\x04K\x01."])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "model").write_bytes(contents)
    with pytest.raises(ExportError, match="not a model exported by murmura"):
        load_model(tmp_path / "model")


def test_a_safetensors_file_from_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model")
    with pytest.raises(ExportError, match="not a model exported by murmura"):
        load_model(tmp_path / "model")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_one_seed_gives_one_text(tmp_path: Path) -> None:
    _, module = load_model(exported(tmp_path / "model"))
    texts = [sample(module, b"stage ", length=30, seed=seed, context=16) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith(b"stage ")
    assert len(texts[0]) == 36
    assert len(sample(module, b"", length=3, seed=1, context=16)) == 4


def test_the_likeliest_text_needs_no_seed(tmp_path: Path) -> None:
    _, module = load_model(exported(tmp_path / "model"))
    greedy = [
        sample(module, b"s", length=5, seed=seed, context=16, temperature=0) for seed in (1, 2)
    ]
    assert greedy[0] == greedy[1]
