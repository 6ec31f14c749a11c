"""What `config check` says of `[start]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from node.errors import ConfigError
from node.run_start import start_lines
from protocols.run import ByteTransformerSpec
from tests.swarm.pipeline.test_start import new_run, old_run, write_old


def test_what_changed_is_said_and_a_whole_checkpoint_fits(tmp_path: Path) -> None:
    start = write_old(tmp_path, 0, 1, 2)
    (tmp_path / start.run / "run.msgpack").write_bytes(old_run().canonical_bytes())
    lines = start_lines(new_run(start), tmp_path)
    assert "changed: training.steps: 6 -> 9" in lines
    assert "changed: pipeline.stages: 3 -> 2" in lines
    assert lines[-1] == "the whole checkpoint is here and fits"


def test_another_model_is_refused(tmp_path: Path) -> None:
    start = write_old(tmp_path, 0, 1, 2)
    model = ByteTransformerSpec(layers=3, width=32, heads=2, context=16, dtype="float64")
    with pytest.raises(ConfigError, match="in the checkpoint, and"):
        start_lines(dataclasses.replace(new_run(start), model=model), tmp_path)


def test_a_checkpoint_that_is_not_here_is_no_error(tmp_path: Path) -> None:
    start = write_old(tmp_path, 0, 1)
    assert "must be on the disks of others" in start_lines(new_run(start), tmp_path)[-1]
