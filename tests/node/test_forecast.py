"""What a run will take, said before torch fails; and what a fetched run may read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from node.config import NodeConfig
from node.errors import ConfigError
from node.forecast import check_fits, forecast_lines, forecasts
from node.runfile import refused_pattern, run_from_plain, wishes_of
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.pipeline.hosted_stage import HostedStage


def run_of(pattern: str = "{stdlib}/**/*.py", *, stages: int = 2, **model: Any) -> RunSpec:
    plain = {
        "name": "large",
        "data": {"pattern": pattern, "sha256": "0" * 64},
        "model": {"kind": "byte-transformer", **model},
        "pipeline": {"stages": stages},
    }
    return run_from_plain(plain, source="test")


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_forecast_counts_the_parameters_that_torch_makes(stages: int) -> None:
    run = run_of(stages=stages, layers=3, width=32, heads=4)
    for part in forecasts(run):
        assert part.stage is not None
        hosted = HostedStage(run, part.stage)
        assert part.parameters == hosted.parameter_count
        held = sum(t.numel() for t in hosted._vectors().values())
        assert part.memory_bytes >= 4 * (held + 2 * hosted.parameter_count)
    assert len(forecasts(run)) == pipeline_of(run).stages


def test_a_run_that_no_machine_can_hold_is_refused_in_its_own_words() -> None:
    run = run_of(layers=1024, width=65536, heads=64, stages=2)
    with pytest.raises(ConfigError) as caught:
        check_fits(run, NodeConfig())
    assert "stage 0 of run large has 26,388," in str(caught.value)
    assert "TB with optimizer and gradient" in str(caught.value)
    assert caught.value.exit_code == 78
    assert "26,388," in forecast_lines(run, NodeConfig())[0]
    check_fits(run, NodeConfig(host=False))  # who only trains holds no stage


def test_a_bound_on_memory_is_what_it_has_to_fit_into() -> None:
    run = run_of(layers=4, width=2048, heads=8, stages=1)
    check_fits(run, NodeConfig(memory_max_mb=1 << 23), room_bytes=1 << 40)
    with pytest.raises(ConfigError, match="256 MB"):
        check_fits(run, NodeConfig(memory_max_mb=256))


def test_a_fetched_run_reads_only_where_it_is_allowed_to(tmp_path: Path) -> None:
    fetched, own = NodeConfig(join="x"), NodeConfig(run="run.toml")
    secret = run_of("/etc/passwd")
    refusal = refused_pattern(secret, wishes_of(fetched))
    assert refusal is not None
    assert "--data PATH" in refusal
    assert "--data-folders" in refusal
    assert refused_pattern(run_of("/"), wishes_of(fetched)) is not None
    assert refused_pattern(run_of(), wishes_of(fetched)) is None  # the standard library
    assert refused_pattern(secret, wishes_of(own)) is None
    allowed = dataclasses.replace(fetched, data_folders=(str(tmp_path),))
    assert refused_pattern(run_of(f"{tmp_path}/*.txt"), wishes_of(allowed)) is None
    chosen = dataclasses.replace(fetched, data=str(tmp_path))
    assert refused_pattern(secret, wishes_of(chosen)) is None
    assert refused_pattern(secret, wishes_of(dataclasses.replace(fetched, train=False))) is None
