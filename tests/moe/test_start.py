"""Whether a moe run can begin from a whole checkpoint of another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from moe.info import TRUNK, checkpoint_parts
from moe.start import check_start, part_specs
from protocols.run import RunSpec
from swarm.state.checkpoint import Checkpoint
from swarm.state.checkpoint_tensors import write_checkpoint
from swarm.state.initial import StartMisfitError
from swarm.state.part import PartFacts
from tests.moe.keepers import SPEC, SPEC_OF_RUN

DTYPES = {"float32": torch.float32, "int64": torch.int64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    folder = tmp_path_factory.mktemp("whole")
    return [
        write_checkpoint(
            folder, SPEC_OF_RUN.run_id, part, 7,
            {name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for name, spec in specs.items()},
            PartFacts(), now_unix_s=1.0,
        )
        for part, specs in part_specs(SPEC_OF_RUN).items()
    ]  # fmt: skip


def other(**table: object) -> RunSpec:
    return dataclasses.replace(SPEC_OF_RUN, table=dataclasses.replace(SPEC, **table))  # type: ignore[arg-type]


def test_a_whole_checkpoint_has_a_trunk_and_every_expert(whole: list[Checkpoint]) -> None:
    parts = checkpoint_parts(SPEC_OF_RUN)
    assert parts == (TRUNK, *(f"expert/ffn0.{row}.{column}" for row in (0, 1) for column in (0, 1)))
    assert {checkpoint.manifest.part for checkpoint in whole} == set(parts)
    check_start(SPEC_OF_RUN, whole)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"hidden": 16}, r"down.weight' is float32 of shape \[8, 8\]"),
        ({"grid": (2, 3)}, "this run has expert/ffn0.0.2, which the checkpoint has not"),
        ({"grid": (2, 1)}, "checkpoint has expert/ffn0.0.1, which this run has not"),
    ],
)
def test_another_grid_or_width_does_not_fit(
    whole: list[Checkpoint], table: dict[str, object], says: str
) -> None:
    with pytest.raises(StartMisfitError, match=says):
        check_start(other(**table), whole)


def test_without_one_expert_it_is_not_whole(whole: list[Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(StartMisfitError, match=r"expert/ffn0\.1\.1"):
        check_start(SPEC_OF_RUN, whole[:-1])
