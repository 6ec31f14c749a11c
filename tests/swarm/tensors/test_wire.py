from __future__ import annotations

import pytest
import torch

from protocols.errors import RemoteProtocolError
from protocols.frames import DTYPE_BYTES, TensorSpec
from swarm.calls.messages import WireTensor
from swarm.tensors.wire import from_wire, spec_of, tensor_untrusted, to_wire

SPEC = TensorSpec("float32", (2, 3))


def wire_of(spec: TensorSpec, data: bytes | None = None) -> WireTensor:
    return WireTensor(
        spec, memoryview(bytearray(spec.byte_count) if data is None else bytearray(data))
    )


@pytest.mark.parametrize("name", DTYPE_BYTES)
def test_every_dtype_of_the_wire_makes_the_round_trip(name: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, name))
    wire = to_wire(tensor)
    assert wire.spec == TensorSpec(name, (2, 3))
    assert wire.data.nbytes == wire.spec.byte_count
    assert wire.data.format == "B"
    assert torch.equal(from_wire(wire), tensor)


def test_both_directions_share_memory() -> None:
    tensor = torch.zeros(4)
    back = from_wire(to_wire(tensor))
    back[2] = 7.0
    assert tensor[2] == 7.0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_have_a_wire_form(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    assert from_wire(to_wire(tensor)).shape == tensor.shape


def test_a_transposed_tensor_is_sent_in_c_order() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(from_wire(to_wire(tensor)), tensor)


def test_read_only_bytes_are_copied_not_written_through() -> None:
    raw = bytes(8)
    from_wire(WireTensor(TensorSpec("float32", (2,)), memoryview(raw))).fill_(1.0)
    assert raw == bytes(8)


@pytest.mark.parametrize(
    "spec",
    [TensorSpec("float64", (2, 3)), TensorSpec("float32", (3, 2)), TensorSpec("float32", (6,))],
)
def test_another_dtype_shape_or_rank_is_the_senders_fault(spec: TensorSpec) -> None:
    with pytest.raises(RemoteProtocolError, match="grad_y must be float32 of shape"):
        tensor_untrusted(wire_of(spec), SPEC, "grad_y")


def test_too_few_bytes_are_the_senders_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="24 bytes, not 20"):
        tensor_untrusted(WireTensor(SPEC, memoryview(bytearray(20))), SPEC, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_the_senders_fault(value: float) -> None:
    tensor = torch.zeros(2, 3)
    tensor[1, 2] = value
    with pytest.raises(RemoteProtocolError, match="not finite"):
        tensor_untrusted(to_wire(tensor), spec_of(tensor), "x")


def test_integers_pass_without_a_finite_check() -> None:
    tensor = torch.full((2, 3), 255, dtype=torch.uint8)
    assert torch.equal(tensor_untrusted(to_wire(tensor), spec_of(tensor), "x"), tensor)
