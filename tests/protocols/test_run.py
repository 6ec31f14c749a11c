"""The run: its hash, its canonical bytes, and what its keys refuse."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.experts.spec import MoeSpec
from protocols.ids import RunID
from protocols.run import (
    RUN_BYTES_MAX,
    AdamWSpec,
    ByteTransformerSpec,
    DeadlineSpec,
    RunSpec,
    StartSpec,
    TextSpec,
    TrainingSpec,
    run_from_canonical_bytes_untrusted,
    run_from_plain,
    start_digest,
)
from protocols.run.pipeline import PipelineSpec
from protocols.schema import SchemaError

SPEC = RunSpec(name="try", data=TextSpec(pattern="{stdlib}/**/*.py", sha256="0" * 64))
GOLDEN = [
    "202f5c5bfb3e81ae4ef1fd0e0cd8e43959a3d4e399921dd9714cdc70d92db4d7",
    "3bf670b7b89a39a1a66cf8e8511c6af12a097eaab5bf619b49437b94a76e0f3e",
]


def test_a_run_survives_being_sent() -> None:
    raw = SPEC.canonical_bytes()
    assert run_from_canonical_bytes_untrusted(raw, SPEC.run_id) == SPEC
    assert len(raw) < RUN_BYTES_MAX


def test_every_setting_changes_the_run_id() -> None:
    variants = [
        SPEC,
        dataclasses.replace(SPEC, name="other"),
        dataclasses.replace(SPEC, seed=1),
        dataclasses.replace(SPEC, model=ByteTransformerSpec(width=64)),
        dataclasses.replace(SPEC, training=TrainingSpec(steps=7)),
    ]
    assert len({spec.run_id for spec in variants}) == len(variants)


def test_defaults_written_out_are_the_same_run() -> None:
    assert run_from_plain(msgpack.unpackb(SPEC.canonical_bytes())).run_id == SPEC.run_id


def test_another_run_than_the_one_asked_for_is_blamed_on_the_sender() -> None:
    other = dataclasses.replace(SPEC, seed=1)
    with pytest.raises(RemoteProtocolError, match="not the run that was asked for"):
        run_from_canonical_bytes_untrusted(other.canonical_bytes(), SPEC.run_id)


def test_a_run_with_a_key_this_version_does_not_know_is_refused_by_name() -> None:
    raw = bytes(msgpack.packb({**msgpack.unpackb(SPEC.canonical_bytes()), "shiny": 1}))
    run_id = RunID(hashlib.sha256(raw).digest())
    with pytest.raises(RemoteProtocolError, match="shiny"):
        run_from_canonical_bytes_untrusted(raw, run_id)


@given(st.binary(max_size=400))
def test_any_bytes_with_the_right_hash_decode_or_blame_the_sender(raw: bytes) -> None:
    run_id = RunID(hashlib.sha256(raw).digest())
    with pytest.raises(RemoteProtocolError):
        run_from_canonical_bytes_untrusted(raw, run_id)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(SchemaError, match="at most model"):
        dataclasses.replace(SPEC, table=PipelineSpec(stages=4))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SchemaError, match="must divide width"):
        ByteTransformerSpec(width=100, heads=3)


def test_a_deadline_floor_above_its_ceiling_is_refused() -> None:
    with pytest.raises(SchemaError, match="must not be above"):
        DeadlineSpec(floor_s=10, ceiling_s=5)


def test_run_ids_do_not_change_by_themselves() -> None:
    """A new mode, or a new key of another mode, must leave the runs that exist what they are."""
    digits = RunSpec(
        name="try",
        data=TextSpec(pattern="t.txt", sha256="1" * 64),
        training=TrainingSpec(batch=8, steps=3, evaluation_samples=4),
        optimizer=AdamWSpec(lr=0.5),
        table=PipelineSpec(stages=2, microbatches=2),
    )
    assert [str(SPEC.run_id), str(digits.run_id)] == GOLDEN


def test_a_table_of_another_mode_is_refused() -> None:
    plain = msgpack.unpackb(SPEC.canonical_bytes())
    with pytest.raises(SchemaError, match="mode: must be one of pipeline"):
        run_from_plain({**plain, "mode": "sideways"})


def test_the_kind_of_a_model_decides_its_keys() -> None:
    plain = {"name": "try", "data": {"pattern": "t", "sha256": "0" * 64}}
    with pytest.raises(SchemaError, match=r"model\.heads: unknown key"):
        run_from_plain({**plain, "model": {"kind": "mlp", "heads": 4}})
    with pytest.raises(SchemaError, match=r"model\.kind: a pipeline cannot cut 'mlp'"):
        run_from_plain({**plain, "model": {"kind": "mlp", "layers": 4}})


START: dict[str, Any] = {"run": "a" * 64, "step": 6, "sha256": "b" * 64}


def test_a_run_that_starts_from_a_checkpoint_is_another_run_and_survives_being_sent() -> None:
    spec = dataclasses.replace(SPEC, start=StartSpec(**START))
    assert spec.run_id != SPEC.run_id
    assert run_from_canonical_bytes_untrusted(spec.canonical_bytes(), spec.run_id) == spec
    assert (SPEC.first_step, spec.first_step) == (0, 6)
    assert "start" not in msgpack.unpackb(SPEC.canonical_bytes())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"step": 120}, r"training\.steps: must be above start\.step \(120\)"),
        ({"step": 0}, r"start\.step"),
        ({"run": "A" * 64}, r"start\.run: must be 64 digits of lower-case hex"),
        ({"sha256": "b" * 63}, r"start\.sha256"),
        ({"part": "stage/0"}, r"start\.part: unknown key"),
    ],
)
def test_a_start_that_cannot_be_is_refused(change: dict[str, object], problem: str) -> None:
    plain = {"name": "try", "data": {"pattern": "t", "sha256": "0" * 64}}
    with pytest.raises(SchemaError, match=problem):
        run_from_plain({**plain, "start": {**START, **change}})


def test_a_mode_that_cannot_start_from_a_checkpoint_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MoeSpec, "CAN_START", False)
    plain = {"name": "try", "mode": "moe", "data": {"pattern": "t", "sha256": "0" * 64}}
    with pytest.raises(SchemaError, match="start: a run of mode moe cannot begin from a check"):
        run_from_plain({**plain, "start": START})


def test_experts_of_scripts_begin_from_no_checkpoint() -> None:
    plain: dict[str, object] = {"name": "try", "mode": "moe", "data": {"kind": "script"}}
    plain["model"] = {"kind": "script-experts", "layers": {"ffn": [2, 2]}, "width": 8}
    run_from_plain(plain)
    with pytest.raises(SchemaError, match="start: the experts of this run live in scripts"):
        run_from_plain({**plain, "start": START})


def test_the_hash_of_a_checkpoint_names_each_part_and_its_file() -> None:
    files = {"stage/0": "1" * 64, "stage/1": "2" * 64}
    assert start_digest(files) == start_digest(dict(reversed(files.items())))
    swapped = {"stage/0": "2" * 64, "stage/1": "1" * 64}
    assert len({start_digest(f) for f in (files, swapped, {"stage/0": "1" * 64})}) == 3
