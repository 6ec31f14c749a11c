"""The run: its hash, its canonical bytes, and what its keys refuse."""

from __future__ import annotations

import dataclasses
import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.ids import RunID
from protocols.run import (
    RUN_BYTES_MAX,
    AdamWSpec,
    ByteTransformerSpec,
    DeadlineSpec,
    RunSpec,
    TextSpec,
    TrainingSpec,
    run_from_canonical_bytes_untrusted,
    run_from_plain,
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
