"""Run files: read, and when they are wrong, say where and how to put it right."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.errors import ConfigError
from node.runfile import FILE_BYTES_MAX, check_wishes, read_run_file
from protocols.run.pipeline import pipeline_of
from swarm.mode_info import Wishes

GOOD = f"""
name = "try"
seed = 7
[data]
pattern = "{{stdlib}}/**/*.py"
sha256 = "{"0" * 64}"
[model]
layers = 4
[pipeline]
stages = 2
"""


def run_file(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_run_file_becomes_a_run(tmp_path: Path) -> None:
    spec = read_run_file(run_file(tmp_path, GOOD))
    assert (spec.name, spec.seed, pipeline_of(spec).model.layers, pipeline_of(spec).stages) == (
        "try",
        7,
        4,
        2,
    )


def test_comments_and_order_do_not_change_the_run_id(tmp_path: Path) -> None:
    first = read_run_file(run_file(tmp_path, GOOD)).run_id
    swapped = GOOD.replace("layers = 4", "layers = 4 # deep").replace("seed = 7\n", "")
    assert read_run_file(run_file(tmp_path, "seed = 7\n" + swapped)).run_id == first


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("layers = 4", "layrs = 4", "model.layrs: unknown key\n  did you mean layers?"),
        ("[pipeline]", "[pipelin]", "pipelin: unknown key\n  did you mean pipeline?"),
        ("seed = 7", "xyzzy = 7", "xyzzy: unknown key\n  known here: name, "),
        ("seed = 7", "seed = -7", "seed: must be at least 0, not -7"),
        ("layers = 4", "layers = '4'", "model.layers: must be a whole number, not text"),
        ("stages = 2", "stages = 9", "must be at most model.layers (4)"),
        ('name = "try"', "", "name: is required but missing"),
        ("[data]", "[data", "is not valid TOML"),
        ("stages = 2", "stages = 2\nsteps = 5", "pipeline.steps: is now training.steps"),
        ("stages = 2", "stages = 2\nsequences = 5", "pipeline.sequences: is now training.batch"),
        ("[model]", "[model]\nkind = 'mlp'", "model.kind: a pipeline cannot cut 'mlp'"),
        ("seed = 7", "mode = 'sideways'", "mode: must be one of pipeline"),
    ],
)
def test_each_mistake_names_file_key_and_cure(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = run_file(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_run_file(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_wrong_value_points_to_the_page_about_run_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_file(run_file(tmp_path, GOOD.replace("seed = 7", "seed = -7")))
    assert "docs/run.md" in caught.value.hint


def test_a_stage_must_be_one_of_the_run(tmp_path: Path) -> None:
    spec = read_run_file(run_file(tmp_path, GOOD))
    for wanted in (None, 0, 1):
        check_wishes(spec, Wishes(stage=wanted))
    with pytest.raises(ConfigError, match="stage must be 0 to 1, not 2"):
        check_wishes(spec, Wishes(stage=2))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the run file .*: No such file"):
        read_run_file(tmp_path / "run.toml")


def test_a_file_that_cannot_be_a_run_is_not_read_into_the_parser(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most"):
        read_run_file(run_file(tmp_path, "#" * (FILE_BYTES_MAX + 1)))
