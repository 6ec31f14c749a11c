"""Checkpoints on disk: what is written is read back, and whatever is not what it says is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from protocols.ids import RunID
from swarm.state.cadence import Cadence
from swarm.state.checkpoint import (
    Checkpoint,
    CheckpointRefusedError,
    expired,
    folder_name,
    scan,
    verify,
)
from swarm.state.checkpoint_tensors import load_checkpoint, write_checkpoint
from swarm.state.part import PartFacts
from swarm.state.snapshot import expected_specs
from tests.swarm.tiny import tiny_run

RUN = tiny_run(dtype="float32").run_id
OTHER_RUN = tiny_run(dtype="float64").run_id


def tensors(scale: float = 1.0) -> dict[str, Tensor]:
    return {
        "parameters/a": torch.arange(6, dtype=torch.float32).reshape(2, 3) * scale,
        "moment/a": torch.ones(2, 3, dtype=torch.bfloat16),
        "step": torch.tensor(7),
        "empty": torch.empty(0, 4),
    }


def write(
    folder: Path, version: int = 7, *, epoch: int = 0, run: RunID = RUN, scale: float = 1.0
) -> Checkpoint:
    facts = PartFacts(epoch=epoch, note=b"note")
    return write_checkpoint(
        folder, run, "stage/2", version, tensors(scale), facts, now_unix_s=1000.0 + version
    )


def test_what_is_written_is_read_back_and_is_a_safetensors_file(tmp_path: Path) -> None:
    written = write(tmp_path)
    (found,), refused = scan(tmp_path, RUN)
    assert refused == []
    assert found == written
    assert found.manifest.note_bytes == b"note"
    loaded = load_checkpoint(found, expected_specs(tensors()))
    for name, tensor in tensors().items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(load_file(found.file)[name], tensor)


def test_equal_states_give_equal_files_and_nothing_partial_is_left(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert one.file.read_bytes() == two.file.read_bytes()
    assert one.manifest.sha256 == two.manifest.sha256
    assert sorted(path.name for path in one.folder.iterdir()) == [
        one.file.name if suffix == "file" else one.manifest_file.name
        for suffix in ("manifest", "file")
    ]


def test_a_part_is_one_folder_whatever_its_name(tmp_path: Path) -> None:
    for name in ("stage/2", "../../x", "..", ".", "a/b/../c", "a+b", "x" * 100):
        folder = tmp_path / folder_name(name)
        assert folder.parent == tmp_path
        assert folder.resolve() == folder
        assert "/" not in folder_name(name)
    assert folder_name("a/b") != folder_name("a+b")


def edit(checkpoint: Checkpoint, **changes: Any) -> None:
    data = json.loads(checkpoint.manifest_file.read_text())
    checkpoint.manifest_file.write_text(json.dumps(data | changes))


def torn_manifest(checkpoint: Checkpoint) -> None:
    checkpoint.manifest_file.write_bytes(checkpoint.manifest_file.read_bytes()[:100])


def linked_manifest(checkpoint: Checkpoint) -> None:
    elsewhere = checkpoint.folder.parent / "elsewhere"
    checkpoint.manifest_file.rename(elsewhere)
    checkpoint.manifest_file.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (torn_manifest, "torn"),
        (linked_manifest, "link"),
        (lambda c: edit(c, format=2), "newer"),
        (lambda c: edit(c, run=str(OTHER_RUN)), "another run"),
        (lambda c: edit(c, file="../../secret"), "another file"),
        (lambda c: edit(c, file="/etc/passwd"), "another file"),
        (lambda c: edit(c, part="stage/1"), "another part"),
        (lambda c: edit(c, version=8), "another part, epoch or version"),
        (lambda c: edit(c, version=10**6), "beyond the end"),
        (lambda c: edit(c, sha256="x"), "not a manifest"),
        (lambda c: edit(c, note="***"), "not a manifest"),
        (lambda c: edit(c, surprise=1), "not a manifest"),
        (lambda c: c.manifest_file.write_text("[" * 100_000), "torn"),
        (lambda c: c.manifest_file.write_text("[]"), "not a manifest"),
    ],
)
def test_a_manifest_that_is_not_in_order_is_refused_and_the_one_before_stays(
    damage: Callable[[Checkpoint], None], reason: str, tmp_path: Path
) -> None:
    before = write(tmp_path, 6)
    damage(write(tmp_path, 7))
    found, (refused,) = scan(tmp_path, RUN, version_max=100)
    assert found == [before]
    assert reason in refused.reason


def cut(checkpoint: Checkpoint) -> None:
    os.truncate(checkpoint.file, 50)


def flip(checkpoint: Checkpoint) -> None:
    data = bytearray(checkpoint.file.read_bytes())
    data[-1] ^= 1
    checkpoint.file.write_bytes(data)


def link(checkpoint: Checkpoint) -> None:
    elsewhere = checkpoint.folder.parent / "elsewhere"
    checkpoint.file.rename(elsewhere)
    checkpoint.file.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut, "bytes"), (flip, "hash"), (link, "link"), (lambda c: c.file.unlink(), "cannot be read")],
)
def test_a_file_that_is_not_what_its_manifest_says_is_refused(
    damage: Callable[[Checkpoint], None], reason: str, tmp_path: Path
) -> None:
    checkpoint = write(tmp_path)
    damage(checkpoint)
    with pytest.raises(CheckpointRefusedError, match=reason):
        verify(checkpoint)
    with pytest.raises(CheckpointRefusedError, match=reason):
        load_checkpoint(checkpoint, None)


@pytest.mark.parametrize(
    "other",
    [
        {"parameters/a": torch.zeros(3, 2)},
        {"parameters/a": torch.zeros(2, 3, dtype=torch.float64)},
        {"parameters/b": torch.zeros(1)},
    ],
)
def test_a_checkpoint_of_other_shapes_or_dtypes_is_refused(
    other: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointRefusedError, match="shapes or dtypes"):
        load_checkpoint(write(tmp_path), expected_specs(tensors() | other))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefusedError, match="not finite"):
        load_checkpoint(write(tmp_path, scale=float("inf")), None)


def test_a_full_disk_leaves_no_checkpoint_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(tmp_path, 6)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 7)
    assert scan(tmp_path, RUN) == ([before], [])
    assert len(list(before.folder.iterdir())) == 2


def test_a_folder_that_is_a_file_or_is_not_there_holds_none(tmp_path: Path) -> None:
    assert scan(tmp_path / "nowhere", RUN) == ([], [])
    (tmp_path / "file").write_text("x")
    assert scan(tmp_path / "file", RUN) == ([], [])
    with pytest.raises(OSError, match="Not a directory"):
        write(tmp_path / "file")


def test_a_later_epoch_is_newer_whatever_the_version(tmp_path: Path) -> None:
    late, early = write(tmp_path, 9, epoch=0), write(tmp_path, 7, epoch=1)
    assert scan(tmp_path, RUN)[0] == [early, late]


def test_old_ones_go_by_count_and_by_age_but_the_newest_stays(tmp_path: Path) -> None:
    for version in range(1, 6):
        write(tmp_path, version)
    here, _ = scan(tmp_path, RUN)
    gone = expired(here, kept=3, age_max_s=1e9, now_unix_s=2000.0)
    assert [c.manifest.version for c in gone] == [2, 1]
    gone = expired(here, kept=1, age_max_s=1e9, now_unix_s=2000.0)
    assert [c.manifest.version for c in gone] == [3, 2, 1]  # 4: who writes more rarely has it
    gone = expired(here, kept=3, age_max_s=10.0, now_unix_s=5000.0)
    assert [c.manifest.version for c in gone] == [4, 3, 2, 1]
    moved = dataclasses.replace(here[0].manifest, part="stage/1", version=1)
    gone = expired([*here, Checkpoint(tmp_path, moved)], kept=1, age_max_s=1e9, now_unix_s=2000.0)
    assert moved not in [c.manifest for c in gone]


def due(cadence: Cadence, *, per_version_s: float, versions: int) -> set[int]:
    return {v for v in range(1, versions) if cadence.is_due(v * per_version_s, v)}


def test_peers_with_other_wishes_and_paces_write_the_same_versions() -> None:
    often = due(Cadence(every_s=10.0), per_version_s=0.9, versions=400)
    seldom = due(Cadence(every_s=10.0), per_version_s=0.5, versions=400)
    rarely = due(Cadence(every_s=70.0), per_version_s=0.7, versions=400)
    assert rarely < seldom < often
    assert often == set(range(16, 400, 16))


def test_a_number_of_steps_replaces_the_seconds() -> None:
    cadence = Cadence(every_s=1.0, every=5)
    assert due(cadence, per_version_s=100.0, versions=21) == {5, 10, 15, 20}


def test_a_part_that_went_back_measures_its_pace_anew() -> None:
    cadence = Cadence(every_s=10.0)
    due(cadence, per_version_s=1.0, versions=100)
    assert not cadence.is_due(1000.0, 16)
    assert not cadence.is_due(1001.0, 17)
