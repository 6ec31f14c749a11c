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
    DataSpec,
    DeadlineSpec,
    ModelSpec,
    PipelineSpec,
    RunSpec,
    run_from_canonical_bytes_untrusted,
)
from protocols.schema import SchemaError, decode, encode

SPEC = RunSpec(name="try", data=DataSpec(pattern="{stdlib}/**/*.py", sha256="0" * 64))


def test_a_run_survives_being_sent() -> None:
    raw = SPEC.canonical_bytes()
    assert run_from_canonical_bytes_untrusted(raw, SPEC.run_id) == SPEC
    assert len(raw) < RUN_BYTES_MAX


def test_every_setting_changes_the_run_id() -> None:
    variants = [
        SPEC,
        dataclasses.replace(SPEC, name="other"),
        dataclasses.replace(SPEC, seed=1),
        dataclasses.replace(SPEC, model=ModelSpec(width=64)),
        dataclasses.replace(SPEC, pipeline=PipelineSpec(steps=7)),
    ]
    assert len({spec.run_id for spec in variants}) == len(variants)


def test_defaults_written_out_are_the_same_run() -> None:
    assert decode(RunSpec, encode(SPEC)).run_id == SPEC.run_id


def test_another_run_than_the_one_asked_for_is_blamed_on_the_sender() -> None:
    other = dataclasses.replace(SPEC, seed=1)
    with pytest.raises(RemoteProtocolError, match="not the run that was asked for"):
        run_from_canonical_bytes_untrusted(other.canonical_bytes(), SPEC.run_id)


def test_a_run_with_a_key_this_version_does_not_know_is_refused_by_name() -> None:
    raw = bytes(msgpack.packb({**encode(SPEC), "shiny": 1}))
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
        dataclasses.replace(SPEC, pipeline=PipelineSpec(stages=4))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SchemaError, match="must divide width"):
        ModelSpec(width=100, heads=3)


def test_a_deadline_floor_above_its_ceiling_is_refused() -> None:
    with pytest.raises(SchemaError, match="must not be above"):
        DeadlineSpec(floor_s=10, ceiling_s=5)
