from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.schema import encode
from swarm.pipeline.hosted_stage import HostedStage
from swarm.state.manifest import Manifest, manifest_untrusted
from swarm.state.snapshot import Restore, Snapshot, expected_specs
from tests.swarm.tiny import tiny_run

CHUNK_BYTES = 4096


def stage_after_a_step() -> HostedStage:
    stage = HostedStage(tiny_run(), 1)
    gradient = torch.randn(
        stage.parameter_count, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    stage.apply_step(gradient, clip_scale=1.0, step=0)
    return stage


def snapshot_of(tensors: dict[str, Tensor]) -> Snapshot:
    return Snapshot.of(tensors, part="stage/1", version=1, chunk_bytes=CHUNK_BYTES)


def restored(snapshot: Snapshot, joiner: HostedStage) -> dict[str, Tensor]:
    restore = Restore(snapshot.manifest, expected_specs(joiner.snapshot()))
    for index in range(len(snapshot.manifest.chunks)):
        restore.chunk(index)[:] = snapshot.chunk(index)
    return restore.finish_untrusted()


def test_a_joiner_holds_the_same_bits_after_the_transfer() -> None:
    old, joiner = stage_after_a_step(), HostedStage(tiny_run(), 1)
    joiner.load(restored(snapshot_of(old.snapshot()), joiner))
    assert joiner.version == 1
    assert snapshot_of(joiner.snapshot()).manifest.root == snapshot_of(old.snapshot()).manifest.root


def test_the_root_depends_on_every_bit_and_on_nothing_else() -> None:
    tensors = stage_after_a_step().snapshot()
    backwards = dict(reversed(tensors.items()))
    assert snapshot_of(backwards).manifest.root == snapshot_of(tensors).manifest.root
    tensors["exp_avg/layers.1.mlp.up.weight"][3, 5] += 1e-12
    assert (
        snapshot_of(tensors).manifest.root
        != snapshot_of(backwards | {"step": torch.tensor(2)}).manifest.root
    )
    assert (
        snapshot_of(tensors).manifest.root
        != snapshot_of(stage_after_a_step().snapshot()).manifest.root
    )


def test_a_snapshot_does_not_follow_the_tensors_it_was_taken_of() -> None:
    tensors = {"a": torch.zeros(4)}
    snapshot = snapshot_of(tensors)
    tensors["a"].fill_(1.0)
    assert bytes(snapshot.chunk(0)) == bytes(16)
    assert snapshot.chunk(0).readonly


def test_chunks_cover_the_bytes_once() -> None:
    snapshot = snapshot_of(
        {"a": torch.arange(1300, dtype=torch.float64), "b": torch.ones(3, dtype=torch.uint8)}
    )
    assert [len(snapshot.chunk(index)) for index in range(3)] == [4096, 4096, 1300 * 8 + 3 - 8192]
    assert b"".join(snapshot.chunk(index) for index in range(3)) == bytes(snapshot.data)
    with pytest.raises(LocalProtocolError):
        snapshot.chunk(3)


def test_the_manifest_makes_the_round_trip_and_its_root_stands_for_it() -> None:
    manifest = snapshot_of(stage_after_a_step().snapshot()).manifest
    assert manifest_untrusted(manifest.to_bytes(), manifest.root) == manifest
    with pytest.raises(RemoteProtocolError, match="hash differs"):
        manifest_untrusted(manifest.to_bytes(), bytes(32))


@given(raw=st.binary(max_size=200))
def test_any_bytes_decode_or_blame_the_sender(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        manifest_untrusted(raw, hashlib.sha256(raw).digest())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunks", ()),
        ("chunk_bytes", 0),
        ("tensors", [["a", "float32", [2]]]),
        (
            "tensors",
            [
                {"name": "b", "dtype": "float32", "shape": [1]},
                {"name": "a", "dtype": "float32", "shape": []},
            ],
        ),
        ("tensors", [{"name": "a", "dtype": "float32", "shape": [-1]}]),
        ("tensors", [{"name": "a", "dtype": "float32", "shape": [2**62, 2**62]}]),
        ("tensors", [{"name": "a", "dtype": "complex64", "shape": [1]}]),
    ],
)
def test_a_manifest_that_contradicts_itself_blames_the_sender(key: str, value: object) -> None:
    data = encode(snapshot_of({"a": torch.zeros(2)}).manifest) | {key: value}
    raw = bytes(msgpack.packb(data))
    with pytest.raises(RemoteProtocolError, match="not a manifest"):
        manifest_untrusted(raw, hashlib.sha256(raw).digest())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("step"),
        lambda tensors: tensors.update({"parameters/extra": torch.zeros(1)}),
        lambda tensors: tensors.update({"step": torch.zeros(2, dtype=torch.int64)}),
        lambda tensors: tensors.update({"step": torch.tensor(1.0)}),
    ],
)
def test_a_snapshot_with_other_names_shapes_or_dtypes_is_refused_before_anything_is_allocated(
    change: Callable[[dict[str, Tensor]], object],
) -> None:
    joiner = HostedStage(tiny_run(), 1)
    tensors = joiner.snapshot()
    change(tensors)
    with pytest.raises(RemoteProtocolError, match="this part"):
        Restore(snapshot_of(tensors).manifest, expected_specs(joiner.snapshot()))


def test_committed_state_that_is_not_finite_never_reaches_our_weights() -> None:
    joiner = HostedStage(tiny_run(), 1)
    tensors = stage_after_a_step().snapshot()
    tensors["exp_avg_sq/layers.1.mlp.up.weight"][0, 0] = float("inf")
    with pytest.raises(RemoteProtocolError, match="not finite"):
        restored(snapshot_of(tensors), joiner)


def test_a_snapshot_that_names_another_step_than_it_holds_is_refused() -> None:
    snapshot = snapshot_of(stage_after_a_step().snapshot())
    lying = dataclasses.replace(
        snapshot, manifest=dataclasses.replace(snapshot.manifest, version=7)
    )
    with pytest.raises(RemoteProtocolError, match="step"):
        restored(lying, HostedStage(tiny_run(), 1))


def test_a_tensor_behind_one_of_another_dtype_makes_the_round_trip() -> None:
    tensors = {
        "a": torch.ones(3, dtype=torch.uint8),
        "b": torch.tensor([1.5, -2.0], dtype=torch.float64),
    }
    snapshot = snapshot_of(tensors)
    restore = Restore(snapshot.manifest, expected_specs(tensors))
    restore.chunk(0)[:] = snapshot.chunk(0)
    assert all(
        torch.equal(tensor, tensors[name]) for name, tensor in restore.finish_untrusted().items()
    )


def test_an_empty_snapshot_has_no_chunks() -> None:
    manifest: Manifest = snapshot_of({}).manifest
    assert manifest.chunks == ()
    assert manifest_untrusted(manifest.to_bytes(), manifest.root) == manifest
