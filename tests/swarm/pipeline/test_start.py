"""A run that goes on from another run's checkpoint, cut in other stages: real peers on the network in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from torch import Tensor

from protocols.frames import TensorSpec
from protocols.ids import RunID
from protocols.run import ByteTransformerSpec, RunSpec, StartSpec, start_digest
from swarm.averaging.butterfly import clip_scale
from swarm.pipeline.hosted_stage import HostedStage
from swarm.pipeline.parts import part_name, stage_specs
from swarm.pipeline.start import check_start
from swarm.state.checkpoint import FOLDER, Checkpoint, scan
from swarm.state.checkpoint_tensors import write_checkpoint
from swarm.state.initial import InitialState, StartMisfitError, find_list
from swarm.state.part import PartFacts
from swarm.state.start import StartMissingError, checkpoints_for, files_of, whole_here, whole_starts
from tests.swarm.tiny import tiny_run

_STEP = 4


def old_run() -> RunSpec:
    return tiny_run(stages=3, steps=6)


def trained(run: RunSpec, stage: int) -> HostedStage:
    """Return a stage after a few steps with made-up gradients: parameters and moments are no initial ones."""
    hosted = HostedStage(run, stage)
    for step in range(_STEP):
        gradient = torch.full_like(hosted.flat, 0.01 * (step + 1))
        hosted.apply_step(gradient, clip_scale=clip_scale([1.0], clip_norm=1.0), step=step)
    return hosted


def write_old(runs: Path, *stages: int) -> StartSpec:
    """Write these stages' checkpoints below `runs`, and return the start that names all of them."""
    run = old_run()
    files: dict[str, str] = {}
    for stage in range(3):
        place = runs / (str(run.run_id) if stage in stages else "elsewhere") / FOLDER
        hosted = trained(run, stage)
        written = write_checkpoint(
            place, run.run_id, part_name(stage), _STEP, hosted.snapshot(), PartFacts(), now_unix_s=1.0
        )  # fmt: skip
        files[part_name(stage)] = written.manifest.sha256
    return StartSpec(run=str(run.run_id), step=_STEP, sha256=start_digest(files))


def new_run(start: StartSpec, **changes: Any) -> RunSpec:
    return dataclasses.replace(tiny_run(**{"stages": 2, "steps": 9, **changes}), start=start)


def specs_of(run: RunSpec, stage: int) -> dict[str, TensorSpec]:
    return stage_specs(HostedStage(run, stage))


def load(run: RunSpec, runs: Path, stage: int) -> Mapping[str, Tensor]:
    """Get a stage's first state from the disk; fails when it would wait for others."""
    assert run.start is not None
    nobody: Any = None
    state = InitialState(run.start, runs / str(run.run_id), nobody, nobody, parts=2)

    async def get() -> Mapping[str, Tensor]:
        with trio.fail_after(5):
            return await state._from_disk(specs_of(run, stage))

    return trio.run(get)


def test_two_stages_are_made_of_three_with_their_moments(tmp_path: Path) -> None:
    run = new_run(write_old(tmp_path, 0, 1, 2))
    before = {n: t for stage in range(3) for n, t in trained(old_run(), stage).snapshot().items()}
    after: dict[str, Tensor] = {}
    for stage in range(2):
        hosted = HostedStage(run, stage)
        hosted.load(load(run, tmp_path, stage))
        assert hosted.version == _STEP
        after |= hosted.snapshot()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_hash_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    start = dataclasses.replace(write_old(tmp_path, 0, 1, 2), sha256="0" * 64)
    with pytest.raises(StartMissingError, match=r"not the whole that start\.sha256 names"):
        load(new_run(start), tmp_path, 0)


def test_a_step_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    start = dataclasses.replace(write_old(tmp_path, 0, 1, 2), step=5)
    with pytest.raises(StartMissingError, match=r"no checkpoint of run .* at step 5 is here"):
        load(new_run(start), tmp_path, 0)


def test_a_file_that_was_changed_is_not_used(tmp_path: Path) -> None:
    run = new_run(write_old(tmp_path, 0, 1, 2))
    assert run.start is not None
    file = next((tmp_path / run.start.run).rglob("stage+0/*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(StartMissingError, match="another hash than its manifest says"):
        load(run, tmp_path, 0)


def test_other_shapes_are_refused_with_the_first_that_differs(tmp_path: Path) -> None:
    start = write_old(tmp_path, 0, 1, 2)
    model = ByteTransformerSpec(layers=3, width=32, heads=2, context=16, dtype="float64")
    wider = dataclasses.replace(new_run(start), model=model)
    with pytest.raises(
        StartMisfitError, match=r"of shape .* in the checkpoint, and .* in this run"
    ):
        load(wider, tmp_path, 0)
    fewer = dataclasses.replace(model, width=16, layers=2)
    here = checkpoints_for(start, tmp_path / "new")
    with pytest.raises(StartMisfitError, match="which the checkpoint has"):
        check_start(dataclasses.replace(new_run(start), model=fewer), here)
    check_start(new_run(start), here)


def test_a_list_is_found_beside_one_liar() -> None:
    files = {"stage/0": "1" * 64, "stage/1": "2" * 64, "stage/2": "3" * 64}
    start = StartSpec(run="a" * 64, step=1, sha256=start_digest(files))
    parts = [{part: sha256} for part, sha256 in files.items()]
    assert find_list(start, parts[0], parts[1:]) == files
    assert find_list(start, parts[0], parts[1:2]) is None
    lie = {"stage/1": "f" * 64, "stage/9": "f" * 64}
    for claims in ([lie, *parts[1:]], [*parts[1:], lie]):
        assert find_list(start, parts[0], claims) == files
    another = dict.fromkeys(files, "0" * 64)
    assert find_list(start, another, [another, files]) == files, "ours may be of a model of our own"


def test_what_is_listed_is_what_is_found(tmp_path: Path) -> None:
    start = write_old(tmp_path, 0, 1, 2)
    run_id = RunID.from_text(start.run)
    found: list[Checkpoint] = scan(tmp_path / start.run / FOLDER, run_id)[0]
    assert whole_starts(run_id, found, tuple(part_name(s) for s in range(3))) == [start]
    assert whole_starts(run_id, found, tuple(part_name(s) for s in range(4))) == []
    assert files_of(whole_here(start, found)) == files_of(found)
