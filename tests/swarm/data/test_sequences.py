from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from protocols.run import TextSpec
from swarm.data.errors import DataError
from swarm.data.sequences import Dataset
from swarm.data.text import DataMismatchError, read_run_text, read_text
from swarm.pipeline.data import dataset_of, load_dataset
from tests.swarm.tiny import tiny_dataset, tiny_run, tiny_text

MB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {
        "b.py": b"bb",
        "a/z.py": b"z",
        "a/.hidden.py": b"h",
        "c.txt": b"c",
        "d.bin": b"\0d",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_microbatch_is_a_pure_function_of_the_run() -> None:
    one, two = tiny_dataset(tiny_run()), tiny_dataset(tiny_run())
    later = [two.training_batch(step, index) for step in (3, 2, 1, 0) for index in range(4)]
    assert [one.training_batch(step, index) for step in (3, 2, 1, 0) for index in range(4)] == later


def test_other_seeds_steps_and_indices_give_other_microbatches() -> None:
    dataset = tiny_dataset(tiny_run())
    batches = [
        bytes(dataset.training_batch(step, index).inputs) for step in range(5) for index in range(4)
    ]
    batches += [bytes(tiny_dataset(tiny_run(seed=2)).training_batch(0, 0).inputs)]
    assert len(set(batches)) == len(batches)


def test_a_microbatch_is_not_changed_by_another_cut_of_the_model() -> None:
    assert tiny_dataset(tiny_run(stages=1)).training_batch(4, 2) == tiny_dataset(
        tiny_run()
    ).training_batch(4, 2)


def test_targets_are_the_inputs_one_byte_later() -> None:
    batch = tiny_dataset(tiny_run()).training_batch(0, 0)
    assert batch.spec.shape == (2, 16)
    assert batch.spec.byte_count == len(batch.inputs) == len(batch.targets)
    assert [batch.inputs[row + 1 : row + 16] for row in (0, 16)] == [
        batch.targets[row : row + 15] for row in (0, 16)
    ]


def test_held_out_text_is_never_trained_on() -> None:
    text = b"a" * 950 + b"b" * 50
    dataset = dataset_of(text, tiny_run(), Dataset)
    assert set(b"".join(dataset.training_batch(step, 0).targets for step in range(300))) == set(
        b"a"
    )
    assert set(b"".join(dataset.held_out_batch(index).inputs for index in range(100))) == set(b"b")


def test_every_byte_but_the_last_can_be_asked_about() -> None:
    run = tiny_run()
    dataset = dataset_of(bytes(range(40)) * 10, run, Dataset)
    seen = {start for step in range(400) for start in dataset.training_batch(step, 0).inputs}
    assert seen == set(range(40))


def test_a_text_shorter_than_the_context_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"longer than model\.context"):
        dataset_of(tiny_text()[:100], tiny_run(), Dataset)


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_binary_files(
    folder: Path,
) -> None:
    assert read_text(str(folder), bytes_max=MB).data == b"z\0bb\0c\0"


def test_a_glob_picks_files_below_its_fixed_part(folder: Path) -> None:
    assert read_text(f"{folder}/*.py", bytes_max=MB).data == b"bb\0"
    assert read_text(f"{folder}/**/*.py", bytes_max=MB).data == b"z\0bb\0"


def test_the_hash_does_not_depend_on_where_the_text_lies(folder: Path) -> None:
    moved = folder.with_name("moved")
    before = read_text(str(folder), bytes_max=MB)
    os.rename(folder, moved)
    assert read_text(str(moved), bytes_max=MB) == before


def test_the_hash_names_files_and_contents_apart(tmp_path: Path) -> None:
    hashes = set()
    for index, files in enumerate([{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "bd"}]):
        for name, content in files.items():
            (tmp_path / str(index)).mkdir(exist_ok=True)
            (tmp_path / str(index) / name).write_text(content)
        hashes.add(read_text(str(tmp_path / str(index)), bytes_max=MB).sha256)
    assert len(hashes) == 4


def test_text_past_the_bound_is_neither_used_nor_hashed(folder: Path) -> None:
    before = read_text(str(folder), bytes_max=4)
    assert before.data == b"z\0bb"
    (folder / "c.txt").write_text("changed")
    assert read_text(str(folder), bytes_max=4) == before


def test_the_standard_library_is_text_that_everybody_has() -> None:
    text = read_text("{stdlib}/*.py", bytes_max=MB)
    assert len(text.data) == MB
    assert b"import" in text.data


def test_other_files_than_the_runs_are_refused_and_the_error_says_what_to_do(folder: Path) -> None:
    spec = TextSpec(pattern="{stdlib}/*.py", sha256="ab" * 32, bytes_max=1024)
    with pytest.raises(DataMismatchError, match="the Python version the run was made with") as here:
        read_run_text(spec)
    assert here.value.expected == "ab" * 32
    with pytest.raises(DataMismatchError, match=r"point `data` \(or --data\)"):
        read_run_text(spec, path=str(folder))


def test_a_volunteer_may_keep_the_text_elsewhere(folder: Path) -> None:
    (folder / "a" / "z.py").write_bytes(tiny_text())
    text = read_text(str(folder), bytes_max=MB)
    run = dataclasses.replace(tiny_run(), data=TextSpec(pattern="/nowhere", sha256=text.sha256))
    assert load_dataset(run, path=str(folder)).training_batch(0, 0) == dataset_of(
        text.data, run, Dataset
    ).training_batch(0, 0)


def test_a_pattern_that_is_none_says_so() -> None:
    with pytest.raises(DataError, match="is not a pattern"):
        read_text("/tmp/**x", bytes_max=MB)


@pytest.mark.parametrize("pattern", ["/nowhere/at/all", "/nowhere/*.py"])
def test_a_pattern_that_names_nothing_says_so(pattern: str) -> None:
    with pytest.raises(DataError, match="no text was found"):
        read_text(pattern, bytes_max=MB)
